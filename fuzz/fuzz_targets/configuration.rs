#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pigateway_fuzz::configuration(data));
