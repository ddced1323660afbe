//! Motion sensors at GPIO pins.
pub mod settings;
