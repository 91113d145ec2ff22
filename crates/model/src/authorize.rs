//! Who may do what: one pure function with three callers (replicas before they apply, readers on
//! what they are handed, auditors on the whole log).

use crate::id::PrincipalId;
use crate::object::{Role, VaultLeaf};
use crate::op::{Op, Rejection};

/// The role an op needs in the vault of every object it touches; none where the op is about the
/// principal's own record and no vault decides.
pub fn required_role(op: &Op) -> Option<Role> {
    match op {
        Op::Register { .. }
        | Op::UpdateUser { .. }
        | Op::OpenSession { .. }
        | Op::CloseSession { .. }
        | Op::SealSession { .. } => None,
        Op::Create { .. }
        | Op::Commit { .. }
        | Op::Stage { .. }
        | Op::SetAttrs { .. }
        | Op::Rename { .. }
        | Op::Remove { .. }
        | Op::Undelete { .. } => Some(Role::Writer),
    }
}

/// Whether `principal` has at least `needed` in a vault.
pub fn authorize(vault: &VaultLeaf, principal: PrincipalId, needed: Role) -> Result<(), Rejection> {
    match vault.role_of(principal) {
        Some(role) if role >= needed => Ok(()),
        _ => Err(Rejection::Denied),
    }
}
