//! Rows that are numbered, so that the last acknowledged number stands for all of them.

use anyhow::{Result, bail};

/// What the row of this number holds.
pub fn body(id: u64) -> String {
    blake3::hash(&id.to_le_bytes()).to_hex().to_string()
}

/// Looks for every row up to `acknowledged`, whole and right, and nothing that never was written, in all that there are,
/// by their numbers. One more row may be there: its COMMIT did its work and never returned. Returns how many there are.
pub fn check(rows: impl Iterator<Item = Result<(u64, String)>>, acknowledged: u64) -> Result<u64> {
    let mut n = 0;
    for row in rows {
        n += 1;
        let (id, found) = row?;
        if id != n {
            bail!("row {n} is missing; acknowledged were {acknowledged}");
        }
        if found != body(id) {
            bail!("row {id} is not what was written");
        }
    }
    if n < acknowledged {
        bail!("rows {} to {acknowledged} were acknowledged and are missing", n + 1);
    }
    if n > acknowledged + 1 {
        bail!("{n} rows are there, and only {} were written", acknowledged + 1);
    }
    Ok(n)
}

#[cfg(test)]
mod tests {
    use super::{body, check};

    #[test]
    fn what_is_missing_wrong_or_too_much_is_found() {
        let rows = |ids: &[u64]| ids.iter().map(|id| Ok((*id, body(*id)))).collect::<Vec<_>>().into_iter();
        assert_eq!(check(rows(&[1, 2, 3]), 3).ok(), Some(3));
        assert_eq!(check(rows(&[1, 2, 3]), 2).ok(), Some(3), "a COMMIT that did not return");
        assert_eq!(check(rows(&[]), 0).ok(), Some(0));
        for (ids, acknowledged) in
            [(&[1, 2, 3][..], 4), (&[1, 3], 2), (&[2, 3], 2), (&[1, 2, 3], 1), (&[1, 1], 1), (&[], 1)]
        {
            assert!(check(rows(ids), acknowledged).is_err(), "{ids:?} of {acknowledged}");
        }
        assert!(check([Ok((1, body(2)))].into_iter(), 1).is_err());
    }
}
