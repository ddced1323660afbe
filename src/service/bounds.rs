//! Cuts what others can make long, before any output of the log has it.
//!
//! User names, client ids, topics, headers and reasons come from others. A user name has up to 64 kB, and
//! whoever may only try to connect would fill the disk with a few of them. So no text of a log line is longer
//! than stated here, whichever room writes the line, and whether it goes to journald, to stderr or to the
//! page. Nor does a text have characters with which it could look like several lines, or like another text.

use std::fmt::{self, Write};

use tracing::field::{DisplayValue, Field, Value, Visit, display};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::message::acts_on_text;

/// The most bytes of the message, and of each field. With the fields that a line has, it is less than a pipe
/// takes at once.
const LONGEST_MESSAGE: usize = 2000;
const LONGEST_FIELD: usize = 300;
/// The most fields of a line: `tracing` has no macro for more.
const MOST_FIELDS: usize = 32;

/// Hands events to an output, with their texts cut.
pub(super) struct BoundedTexts<L>(pub(super) L);

impl<S: Subscriber, L: Layer<S>> Layer<S> for BoundedTexts<L> {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fitting = FittingTexts(true);
        event.record(&mut fitting);
        if fitting.0 {
            return self.0.on_event(event, context);
        }
        let mut cut = CutTexts::default();
        event.record(&mut cut);
        let Some((first, _)) = cut.0.first() else { return };
        let pairs: [(&Field, Option<&dyn Value>); MOST_FIELDS] = std::array::from_fn(|index| {
            cut.0.get(index).map_or((first, None), |(field, text)| (field, Some(text.value())))
        });
        let metadata = event.metadata();
        self.0.on_event(&Event::new(metadata, &metadata.fields().value_set(&pairs)), context);
    }

    // no room of the gateway makes spans; those of libraries have no texts of others
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        self.0.on_new_span(attributes, id, context);
    }

    fn on_record(&self, span: &Id, values: &Record<'_>, context: Context<'_, S>) {
        self.0.on_record(span, values, context);
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        self.0.on_enter(id, context);
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        self.0.on_exit(id, context);
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        self.0.on_close(id, context);
    }
}

fn longest(field: &Field) -> usize {
    if field.name() == "message" { LONGEST_MESSAGE } else { LONGEST_FIELD }
}

/// Whether all texts of an event can stay as they are. Nothing is allocated for the answer.
struct FittingTexts(bool);

impl Visit for FittingTexts {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0 &= write!(FittingText { left: longest(field) }, "{value:?}").is_ok();
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0 &= FittingText { left: longest(field) }.write_str(value).is_ok();
    }

    fn record_u64(&mut self, _: &Field, _: u64) {}

    fn record_i64(&mut self, _: &Field, _: i64) {}

    fn record_bool(&mut self, _: &Field, _: bool) {}
}

/// Takes a text as long as it need not be cut.
struct FittingText {
    left: usize,
}

impl Write for FittingText {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.left = self.left.checked_sub(text.len()).ok_or(fmt::Error)?;
        if text.contains(acts_on_text) { Err(fmt::Error) } else { Ok(()) }
    }
}

/// The texts of an event, cut.
#[derive(Default)]
struct CutTexts(Vec<(Field, CutValue)>);

/// Outputs quote a text, and leave what was formatted as it is.
enum CutValue {
    Text(String),
    Formatted(DisplayValue<String>),
}

impl CutValue {
    fn value(&self) -> &dyn Value {
        match self {
            CutValue::Text(text) => text,
            CutValue::Formatted(text) => text,
        }
    }
}

impl Visit for CutTexts {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let cut = CutText::of(field, |cut| write!(cut, "{value:?}"));
        self.0.push((field.clone(), CutValue::Formatted(display(cut))));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let cut = CutText::of(field, |cut| cut.write_str(value));
        self.0.push((field.clone(), CutValue::Text(cut)));
    }
}

/// Takes a text until it must be cut.
struct CutText {
    text: String,
    most: usize,
}

impl CutText {
    fn of(field: &Field, write: impl FnOnce(&mut CutText) -> fmt::Result) -> String {
        let mut cut = CutText { text: String::new(), most: longest(field) };
        if write(&mut cut).is_err() {
            cut.text.push('…');
        }
        cut.text
    }
}

impl Write for CutText {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if self.text.len() + c.len_utf8() > self.most {
                return Err(fmt::Error);
            }
            self.text.push(if acts_on_text(c) { '?' } else { c });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tracing_subscriber::fmt::MakeWriter;
    use tracing_subscriber::layer::SubscriberExt;

    use super::super::problems::ProblemsLayer;
    use super::*;
    use crate::health::LoggedProblems;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Written {
        type Writer = Written;

        fn make_writer(&'a self) -> Written {
            self.clone()
        }
    }

    /// What stderr and the page get of what is logged.
    fn logged(log: impl FnOnce()) -> (String, Vec<String>) {
        let (written, problems) = (Written::default(), LoggedProblems::default());
        let stderr = tracing_subscriber::fmt::layer().compact().without_time().with_target(false).with_ansi(false);
        let outputs = stderr.with_writer(written.clone()).and_then(ProblemsLayer(problems.clone()));
        let subscriber = tracing_subscriber::registry().with(BoundedTexts(outputs));
        tracing::subscriber::with_default(subscriber, log);
        let lines = String::from_utf8(written.0.lock().clone()).unwrap();
        (lines, problems.last().into_iter().map(|problem| problem.text).collect())
    }

    #[test]
    fn what_others_make_long_is_cut_at_a_character_in_every_output() {
        let (user, topic) = ("ü".repeat(30_000), format!("x{}", "ü".repeat(30_000)));
        let (from, error) = ("192.0.2.1", io::Error::other("y".repeat(60_000)));
        let (lines, problems) = logged(|| {
            tracing::warn!(user, %topic, %from, more = 3, %error, secure = true, "client refused: {}", "because");
        });
        let cut = format!("user=\"{}…\" topic=x{}… from=192.0.2.1 more=3 ", "ü".repeat(150), "ü".repeat(149));
        let rest = format!("error={}… secure=true", "y".repeat(300));
        assert_eq!(lines, format!(" WARN client refused: because {cut}{rest}\n"));
        assert!(problems[0].starts_with("client refused: because user=üü"), "{problems:?}");
        assert!(problems[0].contains("from=192.0.2.1 more=3"), "{problems:?}");
        let (lines, _) = logged(|| tracing::warn!("connection ended: {user}"));
        assert_eq!(lines, format!(" WARN connection ended: {}…\n", "ü".repeat((2000 - 18) / 2)));
    }

    #[test]
    fn a_text_of_others_does_not_look_like_another_line() {
        let topic = "a\n ERROR all is lost\x1b[2J";
        let (lines, problems) = logged(|| tracing::warn!(client_id = topic, %topic, "publication not taken"));
        let shown = "a? ERROR all is lost?[2J";
        assert_eq!(lines, format!(" WARN publication not taken client_id=\"{shown}\" topic={shown}\n"));
        assert_eq!(problems, [format!("publication not taken client_id={shown} topic={shown}")]);
    }

    #[test]
    fn what_is_short_stays_as_it_is() {
        let longest = "x".repeat(300);
        let (lines, _) =
            logged(|| tracing::info!(longest, user = None::<&str>, ratio = 0.5, place = ?(1, "b"), "{longest}"));
        assert_eq!(lines, format!(" INFO {longest} longest=\"{longest}\" ratio=0.5 place=(1, \"b\")\n"));
    }
}
