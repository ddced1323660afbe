//! Answers that a test gives in place of the kernel.

use std::fs;
use std::path::Path;
use std::process::Command;

/// While this file exists, the kernel of [`kernel_of_the_test`] reports that a source of time has set the clock.
pub const CLOCK_IS_SET: &str = "/run/clock-is-set";

/// A library that answers in place of the kernel whether the clock is synchronised, because a test must not depend on the
/// clock of this machine.
pub fn kernel_of_the_test(dir: &Path) -> String {
    let (source, library) = (dir.join("kernel.c"), dir.join("kernel.so").display().to_string());
    let text = format!(
        "#include <string.h>\n#include <sys/timex.h>\n#include <unistd.h>\n\
         int adjtimex(struct timex *answer) {{\n\
             int is_set = access(\"{CLOCK_IS_SET}\", F_OK) == 0;\n\
             memset(answer, 0, sizeof *answer);\n\
             answer->maxerror = is_set ? 1000 : 16000000;\n\
             return is_set ? TIME_OK : TIME_ERROR;\n\
         }}\n"
    );
    fs::write(&source, text).unwrap();
    let compiled = Command::new("gcc").args(["-shared", "-fPIC", "-o", &library]).arg(&source).status().expect("gcc");
    assert!(compiled.success());
    library
}
