//! Files that a service manager hands over (LoadCredential=, systemd.exec(5)): root's alone where they come from, and the
//! service's alone where it finds them. `ringcast.relay.key` among them is as if `--key` named it.

use std::ffi::OsString;
use std::path::PathBuf;

use wire::service;

use crate::layers::{Given, Layer};
use crate::mistake::Origin;
use crate::program::Program;

/// Options whose files can come so. Not the access file: it changes while the relay runs, and a credential does not.
const OPTIONS: [&str; 5] = ["ca", "cert", "client-ca", "key", "token-file"];

/// What is there of them. `variables`: the environment.
pub fn find(program: &Program, variables: impl Fn(&str) -> Option<OsString>) -> Layer {
    let directory = variables(service::CREDENTIALS_VARIABLE).filter(|directory| !directory.is_empty());
    let Some(directory) = directory.map(PathBuf::from) else { return Layer::default() };
    let options = program.keys().filter(|option| OPTIONS.contains(&option.key.as_str()));
    let named = options.map(|option| (&option.key, format!("ringcast.{}.{}", program.name, option.key)));
    named
        .map(|(key, name)| (key, directory.join(&name), name))
        .filter(|(_, path, _)| path.exists())
        .map(|(key, path, name)| {
            (key.clone(), Given { values: vec![path.into()], origin: Origin::Credential { name } })
        })
        .collect()
}
