//! `qos = 2` on rules: each message comes once, whatever ends in between, at an upstream that keeps the session. It is played
//! by the test: it knows messages by their packet ids, hands them on when they are released [MQTT-4.3.3, method B], and stops
//! at a step while the gateway is killed.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use crate::played::read;
use crate::support::packet::{Packet, Publish, V5, packet, publish};
use crate::support::{Connect, Gateway, Properties, Setup, wait_until};
use crate::{drained, publish as publish_texts};

const PUBLISH: u8 = 3;
const PUBREC: u8 = 5;
const PUBREL: u8 = 6;
const PUBCOMP: u8 = 7;

/// At this packet the upstream falls silent.
#[derive(Clone, Copy, Debug)]
struct Stop {
    kind: u8,
    /// After so many of the kind.
    after: usize,
    /// It still does what the packet asks for, and its answer is lost.
    does: bool,
}

#[derive(Default)]
struct State {
    version: u8,
    writer: Option<TcpStream>,
    has_session: bool,
    /// Messages that came up and are not released.
    unreleased: BTreeMap<u16, String>,
    arrived: Vec<String>,
    /// Messages to go down, and those under way: packet id, text, whether PUBREC was there.
    waiting: VecDeque<String>,
    outgoing: VecDeque<(u16, String, bool)>,
    last_id: u16,
    stop: Option<Stop>,
    is_silent: bool,
}

impl State {
    fn say(&mut self, bytes: &[u8]) {
        if let Some(writer) = &mut self.writer {
            // the gateway may be gone
            let _ = writer.write_all(bytes);
        }
    }

    fn send(&mut self, id: u16, text: &str, is_again: bool) {
        let properties = Properties::new();
        let properties = (self.version == V5).then_some(&properties);
        let first = if is_again { 0x0c } else { 0x04 };
        self.say(&publish(b"commands/lamp", text.as_bytes(), first, Some(id), properties));
    }

    /// Up to ten are under way, under few packet ids, which are used again and again.
    fn feed(&mut self) {
        while self.outgoing.len() < 10
            && self.writer.is_some()
            && let Some(text) = self.waiting.pop_front()
        {
            while self.outgoing.iter().any(|(id, ..)| *id == self.last_id) || self.last_id == 0 {
                self.last_id = self.last_id % 13 + 1;
            }
            let id = self.last_id;
            self.outgoing.push_back((id, text.clone(), false));
            self.send(id, &text, false);
        }
    }

    fn hear(&mut self, said: &Packet) {
        if self.is_silent && said.kind() != 1 {
            return;
        }
        let Some(stop) = self.stop.as_mut().filter(|stop| stop.kind == said.kind()) else { return self.act(said) };
        if stop.after > 0 {
            stop.after -= 1;
            return self.act(said);
        }
        let does = stop.does;
        (self.is_silent, self.stop) = (true, None);
        if does {
            let writer = self.writer.take();
            self.act(said);
            self.writer = writer;
        }
    }

    fn act(&mut self, said: &Packet) {
        let none: &[u8] = if self.version == V5 { &[0] } else { &[] };
        match said.kind() {
            1 => {
                assert_eq!(said.body[7] & 2, 0, "the session is to be kept");
                self.is_silent = false;
                self.say(&packet(0x20, &[&[u8::from(self.has_session), 0], none]));
                self.has_session = true;
                for (id, text, is_recorded) in self.outgoing.clone() {
                    match is_recorded {
                        true => self.say(&packet(0x62, &[&id.to_be_bytes()])),
                        false => self.send(id, &text, true),
                    }
                }
                self.feed();
            }
            PUBLISH => {
                let message = Publish::read(said, self.version);
                assert_eq!(message.qos, 2);
                let text = message.text();
                let known = self.unreleased.entry(message.id).or_insert_with(|| text.clone());
                assert_eq!(*known, text, "a packet id stands for one message");
                self.say(&packet(0x50, &[&message.id.to_be_bytes()]));
            }
            PUBREL => {
                self.arrived.extend(self.unreleased.remove(&said.id()));
                self.say(&packet(0x70, &[&said.id().to_be_bytes()]));
            }
            PUBREC => {
                let known = self.outgoing.iter_mut().find(|(id, ..)| *id == said.id());
                known.expect("a message under way").2 = true;
                self.say(&packet(0x62, &[&said.id().to_be_bytes()]));
            }
            PUBCOMP => {
                self.outgoing.retain(|(id, ..)| *id != said.id());
                self.feed();
            }
            8 => self.say(&packet(0x90, &[&said.id().to_be_bytes(), none, &[2]])),
            12 => self.say(&packet(0xd0, &[])),
            _ => {}
        }
    }
}

/// An upstream that keeps sessions.
struct Durable {
    port: u16,
    state: Arc<Mutex<State>>,
}

impl Durable {
    fn new() -> Durable {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state: Arc<Mutex<State>> = Arc::default();
        let shared = state.clone();
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let Some(connect) = read(&mut stream) else { continue };
                {
                    let mut state = shared.lock().unwrap();
                    (state.version, state.writer) = (connect.body[6], stream.try_clone().ok());
                    state.hear(&connect);
                }
                let shared = shared.clone();
                thread::spawn(move || {
                    while let Some(packet) = read(&mut stream) {
                        shared.lock().unwrap().hear(&packet);
                    }
                });
            }
        });
        Durable { port, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn push(&self, text: String) {
        let mut state = self.state();
        state.waiting.push_back(text);
        if !state.is_silent {
            state.feed();
        }
    }

    fn start(&self, protocol: u8) -> (Gateway, u16) {
        let config = format!(
            "[[upstream]]\nname = \"home\"\naddresses = [\"mqtt://127.0.0.1:{}\"]\nprotocol = {protocol}\n\
             max_inflight = 10\nretry = {{ min = \"100 ms\", max = \"400 ms\" }}\n\
             [[upstream.out]]\ntopic_filter = \"loft/#\"\nqos = 2\n\
             [[upstream.in]]\ntopic_filter = \"commands/#\"\nqos = 2\n",
            self.port
        );
        let (setup, http) = Setup::default().config(&config).http();
        (setup.start(), http)
    }
}

fn sorted(mut texts: Vec<String>) -> Vec<String> {
    texts.sort_by_key(|text| text.parse::<u32>().unwrap());
    texts
}

fn once_over_kills(protocol: u8) {
    let durable = Durable::new();
    let (mut gateway, http) = durable.start(protocol);
    let mut keeper = Connect::v5("keeper").persistent().open(gateway.port);
    keeper.subscribe("commands/#", 2);
    keeper.disconnect();
    let stops = [PUBLISH, PUBREL, PUBREC, PUBCOMP].map(|kind| [true, false].map(|does| Stop { kind, after: 7, does }));
    let mut next = 0;
    for stop in stops.into_iter().flatten() {
        durable.state().stop = Some(stop);
        let texts: Vec<String> = (next..next + 25).map(|number: u32| number.to_string()).collect();
        next += 25;
        texts.iter().for_each(|text| durable.push(text.clone()));
        publish_texts(&gateway, "a", &texts.iter().map(String::as_str).collect::<Vec<_>>(), false);
        wait_until(&format!("{stop:?}"), || durable.state().is_silent);
        gateway = gateway.kill().restart();
        wait_until("the gateway is back", || !durable.state().is_silent);
    }
    assert_eq!(drained(http), 0);
    wait_until("all commands are in", || durable.state().outgoing.is_empty() && durable.state().waiting.is_empty());
    let all: Vec<String> = (0..next).map(|number| number.to_string()).collect();
    assert_eq!(sorted(durable.state().arrived.clone()), all, "went up");
    let mut keeper = Connect::v5("keeper").persistent().open(gateway.port);
    let came: Vec<String> = all.iter().map(|_| keeper.receive().text()).collect();
    keeper.ping();
    assert_eq!(sorted(came), all, "came down");
}

#[test]
fn each_message_comes_once_over_kills_of_the_gateway() {
    once_over_kills(5);
}

#[test]
fn so_it_does_on_3_1_1() {
    once_over_kills(4);
}

#[test]
fn an_upstream_that_forgets_the_session_gets_what_is_in_flight_again() {
    for does in [true, false] {
        let durable = Durable::new();
        let (gateway, http) = durable.start(5);
        durable.state().stop = Some(Stop { kind: PUBREL, after: 7, does });
        let texts: Vec<String> = (0..60).map(|number: u32| number.to_string()).collect();
        publish_texts(&gateway, "a", &texts.iter().map(String::as_str).collect::<Vec<_>>(), false);
        wait_until("it is silent", || durable.state().is_silent);
        {
            let mut state = durable.state();
            let arrived = std::mem::take(&mut state.arrived);
            let writer = state.writer.take();
            *state = State { arrived, ..State::default() };
            writer.unwrap().shutdown(Shutdown::Both).unwrap();
        }
        assert_eq!(drained(http), 0);
        let mut arrived = durable.state().arrived.clone();
        let count = arrived.len();
        arrived = sorted(arrived);
        arrived.dedup();
        assert_eq!(arrived, texts, "nothing is lost");
        assert!(count - texts.len() <= 10, "more came twice than are in flight: {count}");
    }
}
