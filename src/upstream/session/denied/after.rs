//! Topics after whose answers connections end: see [`crate::upstream::session::after_answer`].

use tracing::{info, warn};

use super::{APART_MS, DeniedTopics, FIRST_MS, LONGEST_MS, TopicAttempt};
use crate::message::Message;
use crate::upstream::session::put_off::hash;
use crate::upstream::session::{SessionAction, UpstreamSession};

/// The pause before the first attempt, in milliseconds. It is short, because the upstream may end connections for its own reasons,
/// and have met the same topic by chance.
const FIRST_AFTER_MS: u64 = 5_000;

impl DeniedTopics {
    /// Whether this topic is put off because connections end after answers to its messages.
    pub(in crate::upstream::session) fn ends_after(&self, topic: u64) -> bool {
        self.topics.iter().any(|it| it.topic == topic && it.is_put_off && it.is_after)
    }

    /// Records that a connection has ended for another reason, so that attempts tell less, and do not become rare.
    pub(in crate::upstream::session) fn ended_otherwise(&mut self) {
        self.topics.iter_mut().filter(|it| it.is_after).for_each(|it| it.is_erratic = true);
    }
}

impl UpstreamSession {
    /// Puts off the messages of the topic of this one, because the upstream closes the connection just after its answers to them.
    pub(in crate::upstream::session) fn deny_after(&mut self, message: &Message, now: u64) {
        if self.puts_off_topic(message, None, true, now) {
            if let Some(it) = self.denied.put_off(hash(message.view().topic())) {
                it.due = now + FIRST_AFTER_MS;
            }
            let topic = message.view().topic();
            warn!(
                upstream = self.name,
                topic,
                rule = self.rules.place_of_out(topic),
                "the upstream answers messages on this topic and then closes the connection, and does not do so after others: they \
                 are kept and do not hold up the others, one of them is tried after some seconds and then ever more rarely, up to once \
                 an hour, and they are the first to give way when the journal is full"
            );
        }
    }

    /// Handles that the connection has outlived the answer to this message.
    pub(in crate::upstream::session) fn topic_outlived(
        &mut self,
        message: &Message,
        now: u64,
        actions: &mut Vec<SessionAction>,
    ) {
        let topic = hash(message.view().topic());
        if !self.denied.ends_after(topic) {
            return;
        }
        if let Some(at) = self.denied.topics.iter().position(|it| it.topic == topic) {
            let it = self.denied.topics.swap_remove(at);
            if let Some(tried) = it.tried {
                self.put_off.set_due(tried, 0);
            }
            self.suspicion.found_innocent();
            self.after_answer.rest(now);
            info!(upstream = self.name, topic = message.view().topic(), "the upstream takes this topic again");
            actions.extend(it.has_shelved.then_some(SessionAction::TakeBack));
        }
        self.denied.end_attempt(topic);
    }

    /// Handles that the connection has ended after the answer to a message of this topic, if it is denied. The message has ended, so
    /// the next one is tried later.
    pub(in crate::upstream::session) fn topic_not_outlived(
        &mut self,
        topic: u64,
        now: u64,
        actions: &mut Vec<SessionAction>,
    ) {
        let Some(it) = self.denied.put_off(topic) else { return };
        it.times += u32::from(std::mem::take(&mut it.others));
        let pause = if std::mem::take(&mut it.is_erratic) { FIRST_MS } else { FIRST_MS << it.times.min(10) };
        it.due = now + pause.min(LONGEST_MS);
        actions.extend((it.has_shelved && it.tried.is_none()).then_some(SessionAction::TakeBack));
        self.denied.has_ended = true;
        self.denied.attempt = TopicAttempt::None;
        self.keep_topics_apart(topic, now);
    }

    /// Lets attempts of other topics than this one follow later.
    pub(super) fn keep_topics_apart(&mut self, topic: u64, now: u64) {
        for it in self.denied.topics.iter_mut().filter(|it| it.topic != topic) {
            it.due = it.due.max(now + APART_MS);
            if let Some(tried) = it.tried {
                self.put_off.set_due(tried, it.due);
            }
        }
    }
}
