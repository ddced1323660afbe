//! The end of a connection whose opening is incomplete: which part may be the reason.

use tracing::{debug, info, warn};

use super::entries::STRIKES;
use super::{OpeningStep, UpstreamSession};

impl UpstreamSession {
    /// The unanswered part if there is only one, and the parts are sent one after the other.
    fn part_in_turn(&self) -> Option<OpeningStep> {
        self.opening.alone().filter(|_| self.opening.turn.is_some_and(super::OpeningTurn::is_part))
    }

    /// Handles the end of a connection by the upstream, and returns whether the opening was incomplete.
    pub(in super::super) fn opening_ended(&mut self, now: u64) -> bool {
        if self.opening.is_answered() {
            return false;
        }
        let upstream = &self.name;
        self.opening.single = true;
        let was_cautious = std::mem::replace(&mut self.opening.cautious, true);
        match self.part_in_turn() {
            None => {
                self.learned.is_news |= !was_cautious;
                info!(upstream, "the upstream closed the connection before it had answered: one thing at a time now");
            }
            Some(_) if self.may_be_message() => self.is_unsure(),
            // the flag was refused before, and was only tried again
            Some(OpeningStep::Status) if self.retain_refused.is_tried_again() => {
                self.refuse_retain("it closes the connection when it gets the flag", now);
            }
            Some(what) => {
                self.learned.is_news = true;
                let strikes = self.opening.entries.strike(what.clone(), self.opening.is_alive, now);
                match &what {
                    OpeningStep::Filter(filter) if strikes >= STRIKES && strikes.is_power_of_two() => {
                        let rule = self.rules.place_of(filter);
                        warn!(
                            upstream, %filter, rule,
                            "the upstream closes the connection when asked for this subscription: nothing comes down by \
                             it, and it is left out for a while, up to an hour"
                        );
                    }
                    OpeningStep::Status if strikes >= STRIKES => self.status_ended(),
                    _ => {}
                }
            }
        }
        true
    }

    /// Blames nothing, because it may have been the part or a message.
    fn is_unsure(&mut self) {
        self.opening.is_unsure = true;
        debug!(upstream = self.name, "this may be because of the opening or of a message: the opening goes first now");
    }

    /// Handles the end of a silent connection, and returns whether the opening may be the reason.
    pub(in super::super) fn opening_silent(&mut self, now: u64) -> bool {
        let in_turn = self.part_in_turn();
        let is_unsure = in_turn.is_some() && self.may_be_message();
        let what = self.opening.overdue.take().or(in_turn);
        // of a part that was sent alone it is known that nothing was answered since
        if what.is_none() && (self.got_through || self.opening.is_answered()) {
            return false;
        }
        let upstream = &self.name;
        (self.opening.cautious, self.opening.single) = (true, true);
        let Some(what) = what else {
            info!(upstream, "the upstream went silent before it had answered: one thing at a time now");
            return true;
        };
        if is_unsure {
            self.is_unsure();
            return true;
        }
        self.put_off.suspect_path(now);
        let was_alive = self.opening.is_alive;
        let seconds = self.opening.entries.strike_silent(what.clone(), was_alive, now) / 1000;
        match &what {
            _ if !was_alive => info!(
                upstream, part = %self.name_of(&what),
                "the upstream went silent before it had answered anything: this is left out until it answers"
            ),
            OpeningStep::Filter(filter) => warn!(
                upstream, %filter, rule = self.rules.place_of(filter), seconds,
                "the upstream goes silent when asked for this subscription: it is left out for a while, and nothing new is \
                 subscribed to by it meanwhile"
            ),
            OpeningStep::Status => warn!(
                upstream,
                topic = self.status_topic.as_deref().unwrap_or_default(),
                seconds,
                "the upstream goes silent when it gets status_topic: the status is left out for a while"
            ),
        }
        true
    }

    fn name_of(&self, what: &OpeningStep) -> String {
        match what {
            OpeningStep::Filter(filter) => format!("the subscription to {filter}"),
            OpeningStep::Status => "the status".into(),
        }
    }

    /// Records that the upstream answers messages, so that it is not silent because of the opening.
    pub(in super::super) fn is_not_silent(&mut self) {
        self.opening.overdue = None;
    }

    /// Handles a status that has ended connections: first it is tried without the retain flag.
    fn status_ended(&mut self) {
        let (upstream, topic) = (&self.name, self.status_topic.as_deref().unwrap_or_default());
        let may_be_flag = !self.retain_refused.is_in_force() && !self.opening.status_without_flag;
        if may_be_flag {
            self.opening.status_without_flag = true;
            self.opening.entries.try_once_more(OpeningStep::Status);
            return;
        }
        self.opening.status_without_flag = false;
        warn!(
            upstream,
            topic,
            "the upstream closes the connection when it gets status_topic: the status is left out for a while, up \
             to an hour"
        );
    }
}
