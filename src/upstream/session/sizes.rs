//! Concludes from messages that have ended connections whether their size is the reason. Decisions only, without I/O.
//!
//! That sets no message aside, so it needs less evidence than against a message. Still it must be sound: a quota ends
//! connections at messages of any size.

use super::suspected::Suspect;
use crate::message::Message;

/// The number of messages that must have ended connections.
pub(super) const LEAST: usize = 3;
/// The number of connections that they must have ended as their first messages, or with others in between.
const ENDS: u32 = 2;
/// The number of smaller messages that must have been acknowledged since the first of them did.
const SMALLER: u32 = 5;

/// The most messages that are remembered because they were the cause of ended connections.
const GUILTY: usize = 4;

/// The size of a message by which an upstream may decide, without the few bytes of a packet's head, in bytes.
pub(crate) fn size_there(message: &Message) -> usize {
    let view = message.view();
    view.topic().len() + view.payload().len()
}

/// The size from which on messages end connections, if the message `at` and others show that.
///
/// Each of these messages has ended a connection alone, some as the first message, all are larger than everything that was
/// acknowledged since the first of them did, and fewer others have ended connections. They are of different topics, or others of their
/// topic were acknowledged, so the reason is not the topic.
pub(super) fn denied_size(suspects: &[Suspect], at: usize, guilty: &[Suspect]) -> Option<usize> {
    let it = &suspects[at];
    if !it.is_plain() || it.size <= it.largest {
        return None;
    }
    let mut large: Vec<&Suspect> = suspects.iter().filter(|it| it.is_plain()).collect();
    large.extend(guilty);
    large.sort_by_key(|it| std::cmp::Reverse(it.size));
    let is_sound = |large: &[&Suspect]| {
        let acked = large.iter().map(|it| it.acked).max().unwrap_or_default();
        let has_topics = large.iter().any(|it| it.topic != large[0].topic || it.has_acked_topic);
        let strikes: u32 = large.iter().map(|it| it.strikes).sum();
        strikes >= ENDS
            && acked >= SMALLER
            && has_topics
            && possible_size(large.iter().copied()).is_some_and(|size| it.size >= size)
    };
    let most = (LEAST..=large.len()).rev().find(|count| is_sound(&large[..*count]))?;
    let size = large[most - 1].size;
    let smaller = suspects.iter().filter(|it| it.size < size).count();
    (smaller < most).then_some(size)
}

/// The size of the smallest of these messages, if all are larger than everything that was acknowledged since the first of them
/// ended a connection.
pub(super) fn possible_size<'a>(suspects: impl Iterator<Item = &'a Suspect> + Clone) -> Option<usize> {
    let largest = suspects.clone().map(|it| it.largest).max()?;
    suspects.map(|it| it.size).min().filter(|size| *size > largest)
}

/// Remembers a message that was found to be the cause of ended connections.
pub(super) fn remember(guilty: &mut Vec<Suspect>, suspect: Suspect) {
    guilty.retain(|it| it.size > it.largest);
    if guilty.len() >= GUILTY {
        guilty.remove(0);
    }
    guilty.push(suspect);
}
