//! Bare verbs: the loop that the push engine is measured against, on a queue pair that a link has set up and
//! does not use. The requests are built once; nothing is left to do but to post and to poll. The unsafe code
//! of the benches is here and in `counted`.

use anyhow::{Result, bail};
use selvage_fabric::lease::{BlockOffset, CELL_BYTES, LeaseGeometry, Sequence, SlotIndex};
use selvage_fabric::transport::Region;
use selvage_fabric::transport::verbs::measured::{Bare, Completions, sys};
use std::sync::Arc;

/// Memory to send from, as a node's cache segment would be.
pub struct Segment(Arc<dyn Region>);

/// Two requests and what they point to, at an address that does not change.
struct Chain {
    requests: [sys::ibv_send_wr; 2],
    elements: [sys::ibv_sge; 2],
    cell: [u8; CELL_BYTES],
}

/// The loop: one chain for each slot.
pub struct BareLoop {
    bare: Bare,
    #[allow(clippy::vec_box, reason = "a chain points into itself, so it must not move when the list grows")]
    chains: Vec<Box<Chain>>,
}

impl Segment {
    /// Over a region that nobody writes to.
    pub fn new(region: Arc<dyn Region>) -> Self {
        Self(region)
    }

    /// The region.
    pub fn region(&self) -> &Arc<dyn Region> {
        &self.0
    }

    /// Some of its bytes.
    ///
    /// # Panics
    /// If they are not inside.
    pub fn bytes(&self, offset: usize, bytes: usize) -> &[u8] {
        assert!(offset.checked_add(bytes).is_some_and(|end| end <= self.0.bytes()));
        // SAFETY: inside the region (above).
        let first = unsafe { self.0.address().add(offset) };
        // SAFETY: mapped for as long as the region lives (contract of `Region`), zeroed when it was made, and
        // written by nobody (contract of `new`).
        unsafe { std::slice::from_raw_parts(first, bytes) }
    }
}

impl BareLoop {
    /// One chain for each slot: `archive` into the slot's block, `cell` into its first cell.
    ///
    /// # Errors
    /// If a slot or block lies outside.
    pub fn new(
        bare: Bare,
        geometry: &LeaseGeometry,
        slots: u32,
        block_of: impl Fn(u32) -> BlockOffset,
        archive: &[u8],
        cell: [u8; CELL_BYTES],
    ) -> Result<Self> {
        let mut chains = Vec::new();
        for slot in 0..slots {
            let block = geometry.block_offset(block_of(slot), archive.len());
            let (Some(block), Some(at)) = (block, geometry.cell_offset(SlotIndex(slot), Sequence(0))) else {
                bail!("slot {slot} or its block lies outside of the lease");
            };
            let remote = [bare.memory.address + block, bare.memory.address + at];
            let mut chain = Box::new(Chain {
                requests: [0, 1].map(|at| request(u64::from(slot), remote[at], bare.memory.key)),
                elements: [sys::ibv_sge { addr: 0, length: 0, lkey: bare.local_key }; 2],
                cell,
            });
            chain.elements[0].addr = archive.as_ptr() as u64;
            chain.elements[0].length = archive.len() as u32;
            chain.elements[1].addr = chain.cell.as_ptr() as u64;
            chain.elements[1].length = CELL_BYTES as u32;
            let Chain { requests: [first, last], elements, .. } = &mut *chain;
            first.sg_list = &raw mut elements[0];
            first.next = &raw mut *last;
            last.sg_list = &raw mut elements[1];
            last.send_flags =
                sys::ibv_send_flags::IBV_SEND_SIGNALED.0 | sys::ibv_send_flags::IBV_SEND_INLINE.0;
            chains.push(chain);
        }
        Ok(Self { bare, chains })
    }

    /// Posts a slot's chain.
    ///
    /// # Errors
    /// If the send queue does not take it.
    #[inline]
    pub fn post(&mut self, slot: usize) -> Result<()> {
        let mut refused = std::ptr::null_mut();
        let first = &raw mut self.chains[slot].requests[0];
        // SAFETY: the queue pair lives (contract of `Bare`'s link, which the caller keeps); the chain is
        // whole, and boxed, so its addresses hold; the archive is in registered memory that nobody writes.
        let result = unsafe { sys::ibv_post_send(self.bare.qp, first, &raw mut refused) };
        if result != 0 {
            bail!("ibv_post_send: {}", std::io::Error::from_raw_os_error(result.abs()));
        }
        Ok(())
    }

    /// The slots whose chains have ended, handed to `ended`.
    ///
    /// # Errors
    /// If one has failed.
    #[inline]
    pub fn poll(&mut self, mut ended: impl FnMut(usize)) -> Result<()> {
        let mut room = Completions::new();
        // SAFETY: the completion queue lives, and there is room for 16.
        let count = unsafe { sys::ibv_poll_cq(self.bare.cq, 16, room.first()) };
        // SAFETY: so many were written.
        for completion in unsafe { room.written(usize::try_from(count)?) } {
            if completion.status != sys::ibv_wc_status::IBV_WC_SUCCESS {
                bail!("a bare push failed with status {}", completion.status);
            }
            ended(completion.wr_id as usize);
        }
        Ok(())
    }
}

fn request(id: u64, address: u64, key: u32) -> sys::ibv_send_wr {
    sys::ibv_send_wr {
        wr_id: id,
        next: std::ptr::null_mut(),
        sg_list: std::ptr::null_mut(),
        num_sge: 1,
        opcode: sys::ibv_wr_opcode::IBV_WR_RDMA_WRITE,
        send_flags: 0,
        imm_data_invalidated_rkey_union: sys::imm_data_invalidated_rkey_union_t { imm_data: 0 },
        wr: sys::wr_t { rdma: sys::rdma_t { remote_addr: address, rkey: key } },
        qp_type: sys::qp_type_t { xrc: sys::xrc_t { remote_srqn: 0 } },
        bind_mw_tso_union: sys::bind_mw_tso_union_t {
            tso: sys::tso_t { hdr: std::ptr::null_mut(), hdr_sz: 0, mss: 0 },
        },
    }
}
