//! How large the programs are to the verifier, which refuses to walk more than a million instructions.

use vrouter::{
    data_path::{self, DataPath},
    trace,
};

use crate::harness::{in_namespace, new_pins};

const BUDGET: u32 = 800_000;

#[test]
fn the_verifier_accepts_every_program_with_room_to_spare() {
    in_namespace(|| {
        let pins = new_pins();
        let data_path = DataPath::load(pins.clone(), 16);
        let programs = data_path::programs(&pins);
        let trace = trace::live::Program::load(&pins);
        pins.discard().expect("pins");
        data_path.expect("the programs load");
        assert_eq!(programs.len(), 8, "{programs:?}");
        let trace = trace.expect("the program that traces loads").verified_instructions();
        let trace = ("vr_trace".to_owned(), 0, trace);
        for (name, _, instructions) in programs.into_iter().chain([trace]) {
            let instructions = instructions.expect("a kernel that tells (5.16)");
            println!("{name}: {instructions} instructions verified");
            assert!(instructions > 0 && instructions < BUDGET, "{name}: {instructions} of {BUDGET}");
        }
    });
}
