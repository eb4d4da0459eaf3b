//! What a command makes of what is wanted.

use std::collections::BTreeSet;

use crate::agent::target::asker;
use crate::proto::command::{Command, CommandError, ErrorKind, Field, TunnelSpec};
use crate::proto::model::{Desired, Device, Invalid, Owner, Remotes, Tunnel, TunnelName};

/// Makes of the wanted state what a command wants. Returns whether that changed anything.
pub(super) fn apply(desired: &mut Desired, command: &Command, owner: Owner) -> Result<bool, CommandError> {
    match command {
        Command::Add { tunnel, replace } => add(desired, tunnel, *replace, owner),
        Command::Delete { name } => delete(desired, name, owner).map(|()| true),
    }
}

fn add(desired: &mut Desired, spec: &TunnelSpec, replace: bool, owner: Owner) -> Result<bool, CommandError> {
    let known = desired.tunnels.get(&spec.name);
    if known.is_some_and(|known| known.owner != owner) {
        return Err(foreign_owner(Field::Name, &spec.name));
    }
    let device = device_for(desired, spec, replace, owner)?;
    if let Some(peer) = spec.echo.filter(|peer| asker(&device, *peer).is_none()) {
        let fault = Invalid::new(
            format!("is of a family of which device {} has no address", spec.device),
            "give an address of the peer of the other family, or the device an address of this one",
        );
        return Err(CommandError::invalid(Field::Echo, peer, fault));
    }
    let tunnel = spec.tunnel(owner);
    let same_device = desired
        .devices
        .get(&spec.device)
        .is_some_and(|known| known.owner == device.owner && is_same_set(&known.addresses, &device.addresses));
    match known {
        Some(known) if is_same(known, &tunnel) && same_device => return Ok(false),
        Some(known) if !replace => {
            return Err(CommandError::new(
                ErrorKind::AlreadyExists,
                Field::Name,
                &spec.name,
                Invalid::new(
                    format!(
                        "is known with another content (remote {}, device {})",
                        known.remote.as_ref().map_or_else(|| "none".to_owned(), Remotes::to_string),
                        known.device
                    ),
                    "set replace to change it in place, or choose another name",
                ),
            ));
        }
        Some(_) | None => {}
    }
    desired.set(&spec.name, tunnel, device);
    Ok(true)
}

/// Whether two tunnels mean the same: in their lists the order says nothing.
fn is_same(one: &Tunnel, other: &Tunnel) -> bool {
    is_same_set(&one.allowed_prefixes, &other.allowed_prefixes)
        && is_same_set(&one.routes, &other.routes)
        && *one
            == Tunnel {
                allowed_prefixes: one.allowed_prefixes.clone(),
                routes: one.routes.clone(),
                ..other.clone()
            }
}

fn is_same_set<T: Ord>(one: &[T], other: &[T]) -> bool {
    one.iter().collect::<BTreeSet<_>>() == other.iter().collect::<BTreeSet<_>>()
}

/// The device that a tunnel asks for: the one that it names, or with its addresses a new one.
fn device_for(
    desired: &Desired,
    spec: &TunnelSpec,
    replace: bool,
    owner: Owner,
) -> Result<Device, CommandError> {
    let wanted = Device { addresses: spec.addresses.clone(), key: None, owner };
    let Some(known) = desired.devices.get(&spec.device) else {
        if spec.addresses.is_empty() {
            return Err(CommandError::missing(
                Field::Addresses,
                format!(
                    "device {} does not exist yet: give its addresses, as 10.0.1.1/30, or name a device that exists",
                    spec.device
                ),
            ));
        }
        return Ok(wanted);
    };
    if known.owner != owner {
        return Err(foreign_owner(Field::Device, &spec.device));
    }
    if spec.addresses.is_empty() || is_same_set(&spec.addresses, &known.addresses) {
        return Ok(known.clone());
    }
    let alone = desired.tunnels_on(&spec.device).all(|(name, _)| *name == spec.name);
    if replace || alone {
        return Ok(wanted);
    }
    let has: Vec<String> = known.addresses.iter().map(ToString::to_string).collect();
    Err(CommandError::new(
        ErrorKind::Clash,
        Field::Device,
        &spec.device,
        Invalid::new(
            format!("has other addresses ({})", has.join(", ")),
            "leave the addresses out, or set replace to change them for all its tunnels",
        ),
    ))
}

fn delete(desired: &mut Desired, name: &TunnelName, owner: Owner) -> Result<(), CommandError> {
    match desired.tunnels.get(name) {
        None => Err(CommandError::new(
            ErrorKind::NotFound,
            Field::Name,
            name,
            Invalid::new("is no tunnel of this agent", "`agent tunnels` lists their names"),
        )),
        Some(tunnel) if tunnel.owner != owner => Err(foreign_owner(Field::Name, name)),
        Some(_) => {
            desired.remove(name);
            Ok(())
        }
    }
}

fn foreign_owner(field: Field, name: impl std::fmt::Display) -> CommandError {
    CommandError::new(
        ErrorKind::Clash,
        field,
        name,
        Invalid::new("is the other owner's", "change it where it was made, or choose another name"),
    )
}
