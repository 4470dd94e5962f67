//! Where leases' memory and the server's threads go on a host with several NUMA nodes: near the network card
//! that writes there, by hwloc.
//!
//! The decision is [`plan`], a function of a topology, so that it can be tested with topologies that are made
//! up. Memory is *preferred* there, not bound for good: a full NUMA node must not fail a lease, and with a
//! strict binding the kernel would rather kill a process than look elsewhere.

use hwlocality::Topology;
use hwlocality::cpu::binding::CpuBindingFlags;
use hwlocality::cpu::cpuset::CpuSet;
use hwlocality::memory::binding::{MemoryBindingFlags, MemoryBindingPolicy};
use hwlocality::memory::nodeset::NodeSet;
use hwlocality::object::types::ObjectType;
use hwlocality::topology::builder::TypeFilter;

/// What is done about it on this host.
pub(crate) struct Placement(Option<(Topology, Near)>);

/// A place near a card.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Near {
    /// For the memory.
    nodes: NodeSet,
    /// For the threads; empty if this memory has no processors of its own.
    cpus: CpuSet,
}

impl Placement {
    /// Nothing is done.
    pub(crate) fn anywhere() -> Self {
        Self(None)
    }

    /// Near a card of this host, if there is one and it matters.
    pub(crate) fn near(card: Option<&str>) -> Self {
        let topology = match topology() {
            Ok(topology) => topology,
            Err(error) => {
                tracing::warn!(
                    "leases and threads are placed anywhere: hwloc cannot look at this host: {error}"
                );
                return Self(None);
            }
        };
        match plan(&topology, card, card.and_then(|card| nodes_of_card(&topology, card))) {
            Ok(near) => {
                let Near { nodes, cpus } = &near;
                tracing::info!(card, %nodes, %cpus, "leases and threads are placed near the RDMA device");
                Self(Some((topology, near)))
            }
            Err(why) => {
                tracing::debug!("leases and threads are placed anywhere: {why}");
                Self(None)
            }
        }
    }

    /// Pins the calling thread near the card, and with it every thread that it begins later.
    pub(crate) fn pin_thread(&self) {
        let Some((topology, near)) = &self.0 else { return };
        if near.cpus.is_empty() {
            return;
        }
        if let Err(error) = topology.bind_cpu(&near.cpus, CpuBindingFlags::THREAD) {
            tracing::warn!(cpus = %near.cpus, "cannot pin threads near the RDMA device: {error}");
        }
    }

    /// Does what takes memory, with the calling thread's memory preferred near the card meanwhile.
    pub(crate) fn near_card<T>(&self, take: impl FnOnce() -> T) -> T {
        let Some((topology, near)) = &self.0 else { return take() };
        let thread = MemoryBindingFlags::THREAD;
        if let Err(error) = topology.bind_memory(&near.nodes, MemoryBindingPolicy::Bind, thread) {
            tracing::warn!(nodes = %near.nodes, "cannot place memory near the RDMA device: {error}");
            return take();
        }
        let taken = take();
        if let Err(error) = topology.unbind_memory(thread) {
            tracing::warn!("cannot take a thread's memory placement back: {error}");
        }
        taken
    }
}

/// Looks at this host, network cards included.
fn topology() -> Result<Topology, Box<dyn std::error::Error>> {
    // Important are network and RDMA devices, not each bridge on the way to them.
    Ok(Topology::builder().with_io_type_filter(TypeFilter::KeepImportant)?.build()?)
}

/// The NUMA nodes that a card is attached to, if hwloc knows the card. Virtual ones, such as soft-RoCE's, it
/// does not.
fn nodes_of_card(topology: &Topology, card: &str) -> Option<NodeSet> {
    let is_card = |name: &std::ffi::CStr| name.to_bytes() == card.as_bytes();
    let device = topology.os_devices().find(|device| device.name().is_some_and(is_card))?;
    Some(device.first_non_io_ancestor()?.nodeset()?.clone_target())
}

/// Where to go, or why nowhere in particular. `nodes` are the card's, of those that this process may use.
fn plan(topology: &Topology, card: Option<&str>, nodes: Option<NodeSet>) -> Result<Near, String> {
    let all: NodeSet = topology.nodeset().clone_target();
    if all.weight().is_some_and(|count| count <= 1) {
        return Err("this host has one NUMA node".into());
    }
    let Some(card) = card else { return Err("there is no RDMA device".into()) };
    let Some(nodes) = nodes else {
        return Err(format!("hwloc does not know where device {card} is attached"));
    };
    let nodes = &nodes & &all;
    if nodes.is_empty() {
        return Err(format!("this process may use no memory near device {card}"));
    }
    if nodes == all {
        return Err(format!("device {card} is as near to each NUMA node as to the others"));
    }
    let near = topology
        .objects_with_type(ObjectType::NUMANode)
        .filter(|object| object.nodeset().is_some_and(|node| nodes.includes(node)));
    let cpus = near.filter_map(|object| object.cpuset()).fold(CpuSet::new(), |cpus, more| &cpus | more);
    Ok(Near { nodes, cpus })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made_up(description: &str) -> Topology {
        Topology::builder().from_synthetic(description).unwrap().build().unwrap()
    }

    fn node(number: u32) -> NodeSet {
        let index = hwlocality::bitmap::BitmapIndex::try_from(number as usize).unwrap();
        [index].into_iter().collect()
    }

    fn placed(
        description: &str,
        card: Option<&str>,
        at: Option<NodeSet>,
    ) -> Result<(String, String), String> {
        let near = plan(&made_up(description), card, at)?;
        Ok((near.nodes.to_string(), near.cpus.to_string()))
    }

    fn names(nodes: &str, cpus: &str) -> (String, String) {
        (format!("NodeSet({nodes})"), format!("CpuSet({cpus})"))
    }

    #[test]
    fn one_numa_node_needs_nothing() {
        let why = placed("NUMANode:1 core:2 pu:2", Some("mlx5_0"), Some(node(0))).unwrap_err();
        assert_eq!(why, "this host has one NUMA node");
    }

    #[test]
    fn memory_and_threads_go_to_the_socket_of_the_card() {
        let two_sockets = "pack:2 [numa] core:2 pu:2";
        let place = |at| placed(two_sockets, Some("mlx5_0"), Some(node(at)));
        assert_eq!(place(0), Ok(names("0", "0-3")));
        assert_eq!(place(1), Ok(names("1", "4-7")));
    }

    #[test]
    fn of_four_numa_nodes_the_cards_is_taken() {
        let four = "pack:2 NUMANode:2 core:4 pu:1";
        let at = |number| placed(four, Some("mlx5_0"), Some(node(number)));
        assert_eq!(at(2), Ok(names("2", "8-11")));
        // A card that is attached to a socket is near to both nodes of it.
        let socket = &node(0) | &node(1);
        assert_eq!(placed(four, Some("mlx5_0"), Some(socket)), Ok(names("0-1", "0-7")));
    }

    #[test]
    fn what_cannot_be_known_is_named_and_nothing_is_done() {
        let two = "pack:2 [numa] core:2 pu:2";
        let why = |card, at| placed(two, card, at).unwrap_err();
        assert_eq!(why(None, None), "there is no RDMA device");
        assert_eq!(why(Some("rxe0"), None), "hwloc does not know where device rxe0 is attached");
        let everywhere = &node(0) | &node(1);
        assert!(why(Some("mlx5_0"), Some(everywhere)).contains("as near to each NUMA node"));
        assert!(why(Some("mlx5_0"), Some(node(7))).contains("may use no memory near device mlx5_0"));
    }

    /// Synthetic descriptions have no devices, so one is put into the exported description of such a host.
    #[test]
    fn a_card_is_found_where_it_is_attached() {
        let host = made_up("pack:2 [numa] core:2 pu:2");
        let plain = host.export_xml(hwlocality::topology::export::xml::XMLExportFlags::empty()).unwrap();
        let mut xml = plain.as_str().to_owned();
        let second = xml.match_indices("<object type=\"Package\"").nth(1).unwrap().0;
        let end = second + xml[second..].rfind("</object>\n  </object>").unwrap();
        let card = "<object type=\"OSDev\" gp_index=\"900\" name=\"mlx5_0\" osdev_type=\"3\"/>\n    ";
        xml.insert_str(end, card);
        let topology = Topology::builder()
            .from_xml(&xml)
            .unwrap()
            .with_io_type_filter(TypeFilter::KeepImportant)
            .unwrap()
            .build()
            .unwrap();
        assert_eq!(nodes_of_card(&topology, "mlx5_0"), Some(node(1)), "{xml}");
        assert_eq!(nodes_of_card(&topology, "mlx5_1"), None);
        let near = plan(&topology, Some("mlx5_0"), nodes_of_card(&topology, "mlx5_0")).unwrap();
        assert_eq!((near.nodes, near.cpus.to_string()), (node(1), "CpuSet(4-7)".to_owned()));
    }

    #[test]
    fn this_hosts_threads_and_memory_follow_a_plan() {
        let topology = topology().unwrap();
        let first = topology.objects_with_type(ObjectType::NUMANode).next().unwrap();
        let nodes: NodeSet = first.nodeset().unwrap().clone_target();
        let cpu = topology.cpuset().iter_set().next().unwrap();
        let cpus: CpuSet = [cpu].into_iter().collect();
        let placement = Placement(Some((topology, Near { nodes: nodes.clone(), cpus })));
        // In a thread of its own, which is left pinned.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                placement.pin_thread();
                let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
                let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
                assert_eq!(line.trim(), usize::from(cpu).to_string());
                let policy = || {
                    let Some((topology, _)) = &placement.0 else { unreachable!("it was made above") };
                    topology.memory_binding::<NodeSet>(MemoryBindingFlags::THREAD)
                };
                let Ok(before) = policy() else {
                    println!(
                        "this system lets no program ask for memory policies: only checking that it goes on"
                    );
                    assert_eq!(placement.near_card(|| 5), 5);
                    return;
                };
                let during = placement.near_card(|| policy().unwrap());
                assert_eq!(during, (nodes.clone(), Some(MemoryBindingPolicy::Bind)));
                assert_eq!(policy().unwrap(), before, "it is taken back");
            });
        });
    }
}
