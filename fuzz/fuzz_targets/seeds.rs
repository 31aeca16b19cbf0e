//! Not a fuzz target: writes the seed corpora into the directory `RINGCAST_FUZZ_CORPUS`, and ends. It
//! has the shape of one because it is built with their instrumentation.
#![no_main]

use libfuzzer_sys::fuzz_target;

fn write() {
    let directory = std::env::var_os("RINGCAST_FUZZ_CORPUS").expect("RINGCAST_FUZZ_CORPUS is set");
    let captures = std::env::var_os("RINGCAST_CAPTURES").map(std::path::PathBuf::from);
    let written = fuzz::seeds::write(directory.as_ref(), captures.as_deref()).expect("seeds can be written");
    println!("seeds: {written} files");
    std::process::exit(0);
}

fuzz_target!(init: write(), |_input: &[u8]| {});
