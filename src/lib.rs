//! pigateway: an MQTT broker, motion sensors and a store-and-forward bridge in one process on a Raspberry Pi.
//!
//! # The way through the house
//!
//! ```text
//! GPIO edge ─► sensors ─────────┐                            ┌─► live ─► inboxes ─► connected clients
//! MQTT client ─► connection ────┼─► broker::ingress: one ────┤
//! HTTP PUT ─► http ─────────────┤   order for everybody      │             └─► http ─► streams, the page
//! remote topic ─► upstream (in) ┘   (and the retained store) └─► journal ─┬─► upstream (out) ─► remote broker
//!                                                                         └─► persistent sessions ─► clients
//! ```
//!
//! A message is encoded once, by the door it comes through ([`message`]), gets its place in
//! [`broker::ingress`], and from there on is only shared.
//!
//! # Rooms
//!
//! | room | what it is for |
//! |---|---|
//! | [`app`] | puts everything together; the only one that knows every room |
//! | [`cli`] | the command line |
//! | [`config`] | the file, checked as a whole, and what a reload changes |
//! | [`supervise`] | named tasks; the first unexpected end wins; one deadline for shutdown |
//! | [`sensors`] | from an edge on a pin to a published state |
//! | [`broker`] | MQTT clients: ports, sessions, authorisation, the one door in, the live way out |
//! | [`journal`] | what must reach a consumer whether it is connected or not |
//! | [`upstream`] | remote brokers, both ways |
//! | [`http`] | the same topics by REST, live stream, web page and MQTT over WebSocket |
//! | [`service`] | log, signals, systemd |
//! | [`status`] | what the rooms say of themselves |
//! | [`net`], [`tls`] | ports and TLS, for all doors alike |
//! | [`message`], [`time`] | what everybody hands around, and clocks |
//!
//! # Who may know whom
//!
//! [`time`] knows nothing of ours, [`message`] at most [`time`]. Rooms know these two and otherwise only what the flow
//! above needs: sensors and upstream the broker's `ingress`, http the broker, broker and upstream the journal. [`config`] knows
//! the rooms' settings. Nobody knows [`app`] or [`cli`]. rppal is named only in `sensors/rppal.rs`, rumqttd only in
//! `broker/`, rumqttc only in `upstream/client/`. A test holds all this.

pub mod app;
pub mod broker;
pub mod cli;
pub mod config;
pub mod http;
pub mod journal;
pub mod message;
pub mod net;
pub mod sensors;
pub mod service;
pub mod status;
pub mod supervise;
pub mod time;
pub mod tls;
pub mod upstream;
