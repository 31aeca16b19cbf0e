//! What packages take along: man pages, completions, a configuration file.

use std::io;
use std::path::Path;

use clap_complete::Shell;

use crate::program::Program;
use crate::report;

/// Writes `man/*.1`, `completions/*` and `NAME.toml` below a directory, which is made if it is not there. Files of these
/// names are overwritten.
pub fn all(program: &Program, directory: &Path) -> io::Result<()> {
    let (man, completions) = (directory.join("man"), directory.join("completions"));
    std::fs::create_dir_all(&man)?;
    std::fs::create_dir_all(&completions)?;
    clap_mangen::generate_to(program.shown.clone(), &man)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut program.shown.clone(), &program.name, &completions)?;
    }
    std::fs::write(directory.join(format!("{}.toml", program.name)), report::reference(program))
}
