//! What a process has in its memory.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

/// Bytes before what is encrypted in a data packet, section 5.4.6 of the WireGuard paper.
const HEADER: usize = 16;
/// Bytes of a key.
const KEY: usize = 32;
/// How many different bytes a random key has at least, but for one of many millions.
const DIFFERENT: usize = 20;

/// Memory comes and goes in pieces of so many bytes.
const PAGE: usize = 4096;

/// All that a process may write to, as it is now.
pub struct Memory(Vec<Vec<u8>>);

impl Memory {
    /// Of a process.
    pub fn of(process: u32) -> Self {
        let memory = File::open(format!("/proc/{process}/mem")).expect("root may read it");
        let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
        let regions = maps.lines().filter_map(|line| {
            let (range, rest) = line.split_once(' ')?;
            let (from, to) = range.split_once('-')?;
            let [from, to] = [from, to].map(|address| u64::from_str_radix(address, 16).unwrap());
            if !rest.starts_with("rw") {
                return None;
            }
            let mut bytes = vec![0; usize::try_from(to - from).unwrap()];
            // A part of it may go meanwhile.
            for (page, at) in bytes.chunks_mut(PAGE).zip((from..).step_by(PAGE)) {
                let _ = memory.read_exact_at(page, at);
            }
            Some(bytes)
        });
        Self(regions.collect())
    }

    /// How often these bytes stand in it.
    pub fn count(&self, bytes: &[u8]) -> usize {
        self.0
            .iter()
            .map(|region| region.windows(bytes.len()).filter(|window| *window == bytes).count())
            .sum()
    }

    /// How often a key stands in it that a data packet of WireGuard is opened with.
    pub fn keys_of(&self, packet: &[u8]) -> usize {
        let is_key = |bytes: &&[u8]| is_likely(bytes) && opens(bytes, packet);
        // A key begins at a word.
        let found = |region: &Vec<u8>| region.windows(KEY).step_by(4).filter(is_key).count();
        self.0.iter().map(found).sum()
    }
}

fn is_likely(bytes: &[u8]) -> bool {
    let mut seen = [0_u64; 4];
    bytes.iter().for_each(|byte| seen[usize::from(byte >> 6)] |= 1 << (byte & 63));
    seen.iter().map(|bits| bits.count_ones() as usize).sum::<usize>() >= DIFFERENT
}

/// Section 5.4.6 of the WireGuard paper: the nonce is four zero bytes and the counter.
fn opens(key: &[u8], packet: &[u8]) -> bool {
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).unwrap());
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&packet[8..HEADER]);
    let mut sealed = packet[HEADER..].to_vec();
    key.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut sealed).is_ok()
}
