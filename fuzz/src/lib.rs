//! The targets of the fuzzer. Each target takes any bytes and panics if the gateway breaks a promise. The targets call the
//! same functions as the gateway does for data from others, so no parser is copied here.
//!
//! `fuzz/run` looks for new inputs, and `tests/fuzz_corpus.rs` replays the inputs in `corpus/` with every test run.
//!
//! | file | what |
//! |---|---|
//! | `clients` | data from MQTT clients |
//! | `upstreams` | data from upstreams and from the proxies in front of them |
//! | `web` | HTTP, WebSocket, the PROXY protocol, and the answers that the command line reads |
//! | `journal` | files of the journal: damaged ones, and valid ones with contents that no gateway writes |
//! | `files` | the configuration, users, configurations of other programs, and the gateway's own notes |
//! | `texts` | topics, filters, units, addresses, properties |
//! | `meter` | measures the cost of an input |
//! | `house` | a broker that the inputs are sent to |
//! | `disk` | the files of the inputs for the journal |

mod clients;
mod disk;
mod files;
mod house;
mod journal;
mod meter;
pub use meter::measure_by;
mod texts;
mod upstreams;
mod web;

/// The name of a target, which is also that of its corpus, and the function that takes an input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets. Each has its corpus in `fuzz/corpus`, which `tests/fuzz_corpus.rs` replays.
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

/// Bytes as a source of small decisions. After the end, all bytes are 0.
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
