//! The view: the sorted, hashed list of the members that hold slots.
//!
//! Nodes compare views by their hash, so the one invariant is that equal sets of members give equal
//! views and equal hashes, whatever order they were found in, on every platform and in every build:
//! the hash is taken over bytes that are written out here, never over a derived `Hash`. A view is a
//! value; nobody changes one. Who belongs into it is decided by `member`.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use siphasher::sip::SipHasher13;

const VIEW_KEY: [u8; 16] = *b"tracemesh/view/1";

/// The name of a node, the same over restarts: what its certificate proves.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(Arc<str>);

impl NodeId {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for NodeId {
    fn from(name: &str) -> Self {
        Self(Arc::from(name))
    }
}

impl From<String> for NodeId {
    fn from(name: String) -> Self {
        Self(Arc::from(name))
    }
}

impl Borrow<str> for NodeId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}", &*self.0)
    }
}

/// Which life of a node: a greater one replaces a lesser one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation {
    /// Grows with every start of the node's gossip; its memory may be empty.
    pub generation: u64,
    /// Grows with every stand-still that the node noticed; its memory is intact.
    pub epoch: u32,
}

impl fmt::Display for Incarnation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.generation, self.epoch)
    }
}

/// Where a member is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemberState {
    /// Started, but holds no slots and serves no clients yet.
    Joining,
    /// Holds slots.
    Active,
    /// Is handing over what it holds.
    Leaving,
}

impl fmt::Display for MemberState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Joining => "joining",
            Self::Active => "active",
            Self::Leaving => "leaving",
        })
    }
}

/// How much a member carries beside the others, in thousandths: whole numbers compare and hash
/// alike everywhere. The default is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(u32);

impl Weight {
    /// The least weight, 0.001.
    pub const MIN: Self = Self(1);
    /// The greatest weight, 1000.
    pub const MAX: Self = Self(1_000_000);

    /// Rounds to thousandths.
    ///
    /// # Errors
    /// The value is not a number from 0.001 to 1000.
    pub fn new(value: f64) -> Result<Self, WeightError> {
        let thousandths = (value * 1_000.0).round();
        if thousandths >= f64::from(Self::MIN.0) && thousandths <= f64::from(Self::MAX.0) {
            Ok(Self(thousandths as u32))
        } else {
            Err(WeightError { value })
        }
    }

    /// From whole thousandths, 1 to 1,000,000.
    #[must_use]
    pub fn from_thousandths(thousandths: u32) -> Option<Self> {
        (Self::MIN.0..=Self::MAX.0).contains(&thousandths).then_some(Self(thousandths))
    }

    /// The weight times 1000.
    #[must_use]
    pub fn thousandths(self) -> u32 {
        self.0
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self(1_000)
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", f64::from(self.0) / 1_000.0)
    }
}

/// A weight that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("weight {value} is not a number from 0.001 to 1000")]
pub struct WeightError {
    /// What was given.
    pub value: f64,
}

/// One member of a view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewMember {
    /// Who.
    pub id: NodeId,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// Its part of the load.
    pub weight: Weight,
    /// Its rack or site; empty where none is named.
    pub zone: Arc<str>,
    /// Active, or leaving in a view where nobody is active.
    pub state: MemberState,
}

/// The members that hold slots, sorted by id, no id twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    members: Vec<ViewMember>,
    hash: u64,
}

impl View {
    /// The view of these members: the active ones, or the leaving ones if none is active (rule M1).
    /// Of several incarnations of an id the greatest counts.
    #[must_use]
    pub fn new(members: impl IntoIterator<Item = ViewMember>) -> Self {
        let mut newest = BTreeMap::<NodeId, ViewMember>::new();
        for member in members {
            match newest.get(&member.id) {
                Some(known) if known.incarnation >= member.incarnation => {}
                _ => {
                    newest.insert(member.id.clone(), member);
                }
            }
        }
        let any_active = newest.values().any(|member| member.state == MemberState::Active);
        let holding = if any_active { MemberState::Active } else { MemberState::Leaving };
        let members: Vec<_> =
            newest.into_values().filter(|member| member.state == holding).collect();
        let hash = hash(&members);
        Self { members, hash }
    }

    /// The members, sorted by id.
    #[must_use]
    pub fn members(&self) -> &[ViewMember] {
        &self.members
    }

    /// Equal for equal views; two different views have the same one once in 2^64.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Where in [`View::members`] a node is.
    #[must_use]
    pub fn position(&self, id: &NodeId) -> Option<usize> {
        self.members.binary_search_by(|member| member.id.cmp(id)).ok()
    }

    /// The member with this id.
    #[must_use]
    pub fn get(&self, id: &NodeId) -> Option<&ViewMember> {
        self.position(id).map(|position| &self.members[position])
    }
}

impl Default for View {
    fn default() -> Self {
        Self::new([])
    }
}

fn hash(members: &[ViewMember]) -> u64 {
    let mut bytes = Vec::with_capacity(64 * members.len());
    for member in members {
        write_text(&mut bytes, member.id.as_str());
        bytes.extend(member.incarnation.generation.to_le_bytes());
        bytes.extend(member.incarnation.epoch.to_le_bytes());
        bytes.extend(member.weight.thousandths().to_le_bytes());
        write_text(&mut bytes, &member.zone);
        bytes.push(match member.state {
            MemberState::Joining => 0,
            MemberState::Active => 1,
            MemberState::Leaving => 2,
        });
    }
    SipHasher13::new_with_key(&VIEW_KEY).hash(&bytes)
}

/// The length first, so that no two lists of members have the same bytes.
fn write_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: &str, generation: u64, state: MemberState) -> ViewMember {
        ViewMember {
            id: id.into(),
            incarnation: Incarnation { generation, epoch: 0 },
            weight: Weight::default(),
            zone: "".into(),
            state,
        }
    }

    fn ids(view: &View) -> Vec<&str> {
        view.members().iter().map(|member| member.id.as_str()).collect()
    }

    #[test]
    fn a_view_lists_the_active_members_sorted_by_id() {
        let view = View::new([
            member("c", 1, MemberState::Active),
            member("b", 1, MemberState::Joining),
            member("d", 1, MemberState::Leaving),
            member("a", 1, MemberState::Active),
        ]);
        assert_eq!(ids(&view), ["a", "c"]);
        assert_eq!(view.position(&"c".into()), Some(1));
        assert_eq!(view.get(&"b".into()), None);
    }

    #[test]
    fn a_view_lists_the_leaving_members_when_nobody_is_active() {
        let view = View::new([
            member("b", 1, MemberState::Leaving),
            member("c", 1, MemberState::Joining),
            member("a", 1, MemberState::Leaving),
        ]);
        assert_eq!(ids(&view), ["a", "b"]);
    }

    #[test]
    fn the_newest_incarnation_of_an_id_counts() {
        let view = View::new([
            member("a", 2, MemberState::Joining),
            member("a", 1, MemberState::Active),
            member("b", 1, MemberState::Active),
        ]);
        assert_eq!(ids(&view), ["b"]);
    }

    #[test]
    fn the_hash_depends_on_every_part_of_a_member_and_not_on_their_order() {
        let base = member("a", 1, MemberState::Leaving);
        let view = |changed: &ViewMember| {
            View::new([changed.clone(), member("b", 1, MemberState::Leaving)]).hash()
        };
        let mut hashes = vec![view(&base)];
        hashes.push(view(&ViewMember { id: "aa".into(), ..base.clone() }));
        let incarnation = Incarnation { generation: 2, epoch: 0 };
        hashes.push(view(&ViewMember { incarnation, ..base.clone() }));
        let incarnation = Incarnation { generation: 1, epoch: 1 };
        hashes.push(view(&ViewMember { incarnation, ..base.clone() }));
        hashes.push(view(&ViewMember { weight: Weight::MIN, ..base.clone() }));
        hashes.push(view(&ViewMember { zone: "z".into(), ..base.clone() }));
        hashes.push(View::new([base.clone()]).hash());
        hashes.push(
            View::new([member("a", 1, MemberState::Active), member("b", 1, MemberState::Active)])
                .hash(),
        );
        let different: std::collections::BTreeSet<_> = hashes.iter().collect();
        assert_eq!(different.len(), hashes.len());
        let turned = View::new([member("b", 1, MemberState::Leaving), base.clone()]);
        assert_eq!(turned.hash(), view(&base));
    }

    #[test]
    fn the_hash_of_a_known_view_never_changes() {
        let view =
            View::new([member("a", 1, MemberState::Active), member("b", 7, MemberState::Active)]);
        let hashes = (View::default().hash(), view.hash());
        assert_eq!(hashes, (10_617_041_379_933_380_993, 6_512_425_285_821_388_904));
    }

    #[test]
    fn weights_outside_their_range_are_refused() {
        for value in [0.0, -1.0, 0.000_4, 1_000.1, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(Weight::new(value).is_err(), "{value}");
        }
        assert_eq!(Weight::new(1.0), Ok(Weight::default()));
        assert_eq!(Weight::new(0.001), Ok(Weight::MIN));
        assert_eq!(Weight::new(1_000.0), Ok(Weight::MAX));
        assert_eq!(Weight::new(2.5).unwrap().to_string(), "2.5");
        assert_eq!(Weight::from_thousandths(0), None);
    }
}
