//! pigateway: an MQTT broker, motion sensors and a store-and-forward bridge in one process on a Raspberry Pi.
//!
//! # The way through the house
//!
//! ```text
//! GPIO edge ─► sensors ─────┐                              ┌─► live ─► inboxes ─► connected clients, streams, the page
//! MQTT client ─► broker ────┼─► exchange: one order, one ──┤
//! HTTP PUT ─► http ─────────┤   matching, retained store   └─► journal ─┬─► upstream (out) ─► remote broker
//! remote topic ─► upstream ─┘                                           └─► persistent sessions ─► clients
//! ```
//!
//! A message is encoded once, by the door it comes through ([`message`]), gets its place in
//! [`exchange::ingress`], and from there on is only shared.
//!
//! # Rooms, from the top floor down
//!
//! | room | what it is for |
//! |---|---|
//! | [`cli`] | the command line |
//! | [`app`] | puts everything together; the only one that knows every room |
//! | [`home_assistant`] | tells Home Assistant of the gateway and its sensors |
//! | [`config`] | the file, checked as a whole, and what a reload changes |
//! | [`broker`] | the door for MQTT clients: ports, sessions |
//! | [`sensors`] | the door for pins: from an edge to a published state |
//! | [`upstream`] | the door to remote brokers, both ways |
//! | [`http`] | the door for programs and browsers: REST, live stream, web page |
//! | [`service`] | log, signals, systemd |
//! | [`mdns`] | tells the local network of the open ports |
//! | [`status`] | what the rooms say of themselves, for those who show it |
//! | [`exchange`] | what every door shares: order, retained store, live delivery, shared groups, counters |
//! | [`journal`] | what must reach a consumer whether it is connected or not |
//! | [`import`] | configurations of mosquitto and mqtt-io, as ours |
//! | [`access`] | users, passwords, rules: one answer for every door |
//! | [`net`], [`tls`] | sockets and TLS, for all doors alike |
//! | [`mqtt`] | packets, properties, reason codes |
//! | [`message`] | what everybody hands around |
//! | [`health`] | pulse of the tasks, problems |
//! | [`supervise`] | named tasks; the first unexpected end wins; one deadline for shutdown |
//! | [`workers`] | the threads that serve connections: one, or more where that pays |
//! | [`kept_file`] | small files of the gateway, written again after a failure |
//! | [`secret`] | passwords, certificates and keys in files |
//! | [`time`] | clocks |
//!
//! # Who may know whom
//!
//! A room imports what stands below it. The four doors know nothing of each other, [`config`] knows only the settings of
//! other rooms, and nobody knows [`app`] or [`cli`]. rppal is named only in `sensors/rppal.rs`, rumqttd only in
//! `exchange/`, rumqttc only in `upstream/client/`. A test holds all this.

pub mod access;
pub mod app;
pub mod broker;
pub mod cli;
pub mod config;
pub mod exchange;
pub mod health;
pub mod home_assistant;
pub mod http;
pub mod import;
pub mod journal;
pub mod kept_file;
pub mod mdns;
pub mod message;
pub mod mqtt;
pub mod net;
pub mod secret;
pub mod sensors;
pub mod service;
pub mod status;
pub mod supervise;
pub mod time;
pub mod tls;
pub mod upstream;
pub mod workers;
