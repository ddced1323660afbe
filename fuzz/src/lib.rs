//! What the fuzzer feeds: each target takes any bytes and panics where the gateway breaks a promise. They call what the
//! gateway calls, on what others wrote: no parser is copied here.
//!
//! `fuzz/run` looks for new inputs; `tests/fuzz_corpus.rs` replays those in `corpus/` with every test run.
//!
//! | file | what |
//! |---|---|
//! | `clients` | what MQTT clients say |
//! | `upstreams` | what upstreams and the proxies on the way to them say |
//! | `web` | HTTP, WebSocket, the PROXY protocol, and the answers that the command line reads |
//! | `journal` | files of the journal: damaged ones, and whole ones that say what no gateway writes |
//! | `files` | the configuration, users, what other programs were configured with, and what the gateway notes for itself |
//! | `texts` | topics, filters, units, addresses, properties |
//! | `meter` | what an input costs |
//! | `house` | a broker to speak with |

mod clients;
mod files;
mod house;
mod journal;
mod meter;
pub use meter::measure_by;
mod texts;
mod upstreams;
mod web;

/// A target's name, which is that of its corpus too, and what takes an input.
pub type Target = (&'static str, fn(&[u8]));

/// Each has its corpus in `fuzz/corpus`, which `tests/fuzz_corpus.rs` replays.
pub const TARGETS: [Target; 16] = [
    ("first_bytes", clients::first_bytes),
    ("packets", clients::packets),
    ("upstream", upstreams::upstream),
    ("upstream_task", upstreams::task),
    ("proxy_answer", upstreams::proxy_answer),
    ("http", web::http),
    ("websocket", web::websocket),
    ("proxy_header", web::proxy_header),
    ("answers", web::answers),
    ("journal_damage", journal::damage),
    ("journal_records", journal::records_of_strangers),
    ("configuration", files::configuration),
    ("users", files::users),
    ("imports", files::imports),
    ("notes", files::notes),
    ("texts", texts::texts),
];

/// Bytes as a source of small decisions: what is not there is 0.
struct Source<'a>(&'a [u8]);

impl<'a> Source<'a> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn number(&mut self) -> usize {
        usize::from(self.byte()) << 8 | usize::from(self.byte())
    }

    fn take(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
