//! A layer of the log that keeps the last warnings and errors, for people without a shell on the gateway.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::health::LoggedProblems;
use crate::time::{Clock, SystemClock};

/// Copies warnings and errors to [`LoggedProblems`].
pub(crate) struct ProblemsLayer(pub(crate) LoggedProblems);

impl<S: Subscriber> Layer<S> for ProblemsLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warn",
            _ => return,
        };
        let mut text = ProblemText::default();
        event.record(&mut text);
        let ProblemText { message, fields } = text;
        self.0.push(SystemClock.unix_ms(), level, event.metadata().target(), message + &fields);
    }
}

/// Formats the message first, and then the fields as `name=value`.
#[derive(Default)]
struct ProblemText {
    message: String,
    fields: String,
}

impl Visit for ProblemText {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // writing to a string cannot fail
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let _ = if field.name() == "message" {
            write!(self.message, "{value}")
        } else {
            write!(self.fields, " {}={value}", field.name())
        };
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn warnings_and_errors_are_remembered_with_their_fields() {
        let problems = LoggedProblems::default();
        let log = tracing_subscriber::registry().with(ProblemsLayer(problems.clone()));
        tracing::subscriber::with_default(log, || {
            tracing::info!("nothing special");
            tracing::warn!(sensor = "loft", count = 3, "edges lost");
            tracing::error!("disk {}", "full");
        });
        let texts: Vec<_> = problems.last().into_iter().map(|problem| (problem.level, problem.text)).collect();
        assert_eq!(texts, [("warn", "edges lost sensor=loft count=3".into()), ("error", "disk full".into())]);
    }
}
