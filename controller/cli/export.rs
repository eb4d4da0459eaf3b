//! `controller export`.

use std::fmt::Display;
use std::io::{self, Write};
use std::str::FromStr;

use ipnet::IpNet;
use prost::Message;
use zeroize::Zeroizing;

use super::{ControllerArgs, Error};
use crate::proto::host::output;
use crate::proto::host::wireguard::PrivateKey;
use crate::proto::model::{MeshName, NodeName, PublicKey, Remote};
use crate::proto::session::Generation;
use crate::proto::v1;

/// The most bytes of a file and of each of its peers beside what the controller says.
const ROOM: usize = 512;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Print the file by which wg-quick sets up a node of kind wireguard
    Wireguard(WireguardArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct WireguardArgs {
    /// The node
    node: String,
    /// The mesh, where the node is in more than one
    #[arg(long, default_value = "", hide_default_value = true)]
    mesh: String,
    /// Make a key for it: the private half is in what is printed, and nowhere else; a key made before is refused from
    /// now on
    #[arg(long)]
    generate_key: bool,
    #[command(flatten)]
    controller: ControllerArgs,
}

impl Command {
    pub(super) async fn run(&self) -> Result<(), Error> {
        match self {
            Self::Wireguard(args) => args.run().await,
        }
    }
}

impl WireguardArgs {
    async fn run(&self) -> Result<(), Error> {
        let mut controller = self.controller.connect().await?;
        let key = self.generate_key.then(PrivateKey::generate).transpose()?;
        let public_key = key.as_ref().map(|key| key.public().to_string()).unwrap_or_default();
        let (node, mesh) = (self.node.clone(), self.mesh.clone());
        let request = v1::ExportWireguardRequest { node, mesh, public_key: public_key.clone() };
        let answer = controller.export_wireguard(request).await?.into_inner();
        for peer in &answer.left_out {
            let words = output::printable(&format!("{} is left out: {}", peer.node, peer.reason));
            // Where that is gone, nobody looks.
            let _ = writeln!(io::stderr(), "controller: {words}");
        }
        // Before the key is in force, and the last one is not any more: what is lost now is lost for ever.
        if !output::print(&file(&answer, key.as_ref())?)? {
            return Err(Error::Failed("nobody reads what is printed, and nothing has changed".to_owned()));
        }
        if key.is_some() {
            let request = v1::SetWireguardKeyRequest { node: answer.node, mesh: answer.mesh, public_key };
            controller.set_wireguard_key(request).await.map_err(|status| {
                let why = Error::from(status);
                Error::Failed(format!("the key that is printed may not be in force; do it again: {why}"))
            })?;
        }
        Ok(())
    }
}

/// What the controller says in a text, which becomes part of a file that another program obeys.
fn parsed<T: FromStr<Err: Display>>(field: &str, text: &str) -> Result<T, Error> {
    text.parse().map_err(|error| {
        Error::Failed(format!("the controller's answer has {field} {text:?}, which {error}"))
    })
}

/// The file of wg-quick(8).
fn file(answer: &v1::ExportWireguardResponse, key: Option<&PrivateKey>) -> Result<Zeroizing<String>, Error> {
    let node: NodeName = parsed("node", &answer.node)?;
    let mesh: MeshName = parsed("mesh", &answer.mesh)?;
    let public_key: PublicKey = parsed("public_key", &answer.public_key)?;
    if key.is_some_and(|key| key.public() != public_key) {
        return Err(Error::Failed(format!("the controller's answer has another key of {node}")));
    }
    if answer.more_peers > 0 {
        return Err(Error::Failed(format!(
            "{node} has {} peers more than fit into an answer",
            answer.more_peers
        )));
    }
    let generation = answer.generation.map(|generation| Generation::from(generation).to_string());
    // With room for all of it: what is moved leaves a copy of the key behind.
    let mut text =
        Zeroizing::new(String::with_capacity(ROOM + 2 * answer.encoded_len() + ROOM * answer.peers.len()));
    text.push_str(&format!("# {node} in mesh {mesh}, generation {}\n", generation.unwrap_or_default()));
    text.push_str("[Interface]\n");
    match key {
        Some(key) => {
            text.push_str("PrivateKey = ");
            text.push_str(&key.to_text());
            text.push('\n');
        }
        None => text.push_str(&format!(
            "# Put the private key of {public_key} into /etc/wireguard/NAME.key, mode 0600; this is NAME.conf.\n\
             PostUp = wg set %i private-key /etc/wireguard/%i.key\n"
        )),
    }
    let addresses = answer.addresses.iter().map(|address| parsed::<IpNet>("addresses", address));
    text.push_str(&line("Address", &list(addresses)?));
    if answer.listen_port != 0 {
        text.push_str(&line("ListenPort", &answer.listen_port));
    }
    if answer.mtu != 0 {
        text.push_str(&line("MTU", &answer.mtu));
    }
    for peer in &answer.peers {
        let node: NodeName = parsed("node", &peer.node)?;
        let public_key: PublicKey = parsed("public_key", &peer.public_key)?;
        text.push_str(&format!("\n# {node}\n[Peer]\n"));
        text.push_str(&line("PublicKey", &public_key));
        if !peer.endpoint.is_empty() {
            let endpoint: Remote = parsed("endpoint", &peer.endpoint)?;
            text.push_str(&line("Endpoint", &endpoint));
        }
        let allowed = peer.allowed_ips.iter().map(|prefix| parsed::<IpNet>("allowed_ips", prefix));
        text.push_str(&line("AllowedIPs", &list(allowed)?));
        if peer.keepalive != 0 {
            text.push_str(&line("PersistentKeepalive", &peer.keepalive));
        }
    }
    let left_out = answer.left_out.len() + answer.more_left_out as usize;
    if left_out > 0 {
        text.push_str(&format!(
            "\n# {left_out} of its peers cannot be reached yet: print it again when they can\n"
        ));
    }
    Ok(text)
}

fn line(name: &str, value: &dyn Display) -> String {
    format!("{name} = {value}\n")
}

fn list(values: impl Iterator<Item = Result<IpNet, Error>>) -> Result<String, Error> {
    let words: Result<Vec<_>, Error> = values.map(|value| Ok(value?.to_string())).collect();
    Ok(words?.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(key: &PublicKey) -> v1::ExportWireguardResponse {
        v1::ExportWireguardResponse {
            node: "phone".to_owned(),
            mesh: "prod".to_owned(),
            generation: Some(Generation { incarnation: 1, revision: 12 }.into()),
            public_key: key.to_string(),
            addresses: vec!["10.9.0.4/24".to_owned(), "fd00:9::4/64".to_owned()],
            listen_port: 51820,
            mtu: 1400,
            peers: vec![v1::WireguardPeer {
                node: "minion-1".to_owned(),
                public_key: key.to_string(),
                endpoint: "[fd00:100::1]:5000".to_owned(),
                allowed_ips: vec!["10.9.0.1/32".to_owned(), "192.168.1.0/24".to_owned()],
                keepalive: 25,
            }],
            ..v1::ExportWireguardResponse::default()
        }
    }

    #[test]
    fn the_file_is_what_wg_quick_reads() {
        let key = PrivateKey::generate().unwrap();
        let public_key = key.public();
        let text = file(&answer(&public_key), Some(&key)).unwrap();
        let private = key.to_text();
        let wanted = format!(
            "# phone in mesh prod, generation 1.12\n[Interface]\nPrivateKey = {}\nAddress = 10.9.0.4/24, fd00:9::4/64\n\
             ListenPort = 51820\nMTU = 1400\n\n# minion-1\n[Peer]\nPublicKey = {public_key}\n\
             Endpoint = [fd00:100::1]:5000\nAllowedIPs = 10.9.0.1/32, 192.168.1.0/24\nPersistentKeepalive = 25\n",
            *private
        );
        assert!(*text == wanted, "it has another form");
        let text = file(&answer(&public_key), None).unwrap();
        let of_file = format!(
            "# Put the private key of {public_key} into /etc/wireguard/NAME.key, mode 0600; this is NAME.conf.\n\
             PostUp = wg set %i private-key /etc/wireguard/%i.key\n"
        );
        assert!(text.contains(&of_file) && !text.contains("PrivateKey"), "{}", *text);
        let least =
            v1::ExportWireguardResponse { listen_port: 0, mtu: 0, more_left_out: 2, ..answer(&public_key) };
        let text = file(&least, None).unwrap();
        assert!(!text.contains("ListenPort") && !text.contains("MTU"));
        assert!(text.ends_with("# 2 of its peers cannot be reached yet: print it again when they can\n"));
    }

    /// wg-quick runs what it finds behind PostUp.
    #[test]
    fn nothing_that_is_told_becomes_a_line_of_its_own() {
        let key = PrivateKey::generate().unwrap().public();
        let odd = "a\nPostUp = true".to_owned();
        let peer = answer(&key).peers[0].clone();
        let with =
            |peer: v1::WireguardPeer| v1::ExportWireguardResponse { peers: vec![peer], ..answer(&key) };
        let answers = [
            v1::ExportWireguardResponse { node: odd.clone(), ..answer(&key) },
            v1::ExportWireguardResponse { mesh: odd.clone(), ..answer(&key) },
            v1::ExportWireguardResponse { public_key: odd.clone(), ..answer(&key) },
            v1::ExportWireguardResponse { addresses: vec![odd.clone()], ..answer(&key) },
            with(v1::WireguardPeer { node: odd.clone(), ..peer.clone() }),
            with(v1::WireguardPeer { public_key: odd.clone(), ..peer.clone() }),
            with(v1::WireguardPeer { endpoint: odd.clone(), ..peer.clone() }),
            with(v1::WireguardPeer { allowed_ips: vec![odd], ..peer }),
        ];
        for answer in answers {
            assert!(file(&answer, None).is_err(), "{answer:?}");
        }
    }

    #[test]
    fn a_key_that_is_not_in_force_is_not_printed() {
        let [ours, theirs] = [(); 2].map(|()| PrivateKey::generate().unwrap());
        assert!(file(&answer(&theirs.public()), Some(&ours)).is_err());
    }
}
