//! Whom a process runs as: an OCI `user` text looked up in the image's own `/etc/passwd` and `/etc/group`.

use std::fs;

use crate::messages::Refused;

#[derive(Debug, PartialEq, Eq, Clone)]
pub struct Credentials {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
}

/// Looks `user` up in this root's files. A missing file is an empty one.
///
/// Errors: `no_such_user` for a name that is in neither file; numbers need not be there.
pub fn look_up(user: &str) -> Result<Credentials, Refused> {
    let passwd = fs::read("/etc/passwd").unwrap_or_default();
    let group = fs::read("/etc/group").unwrap_or_default();
    resolve(user, &String::from_utf8_lossy(&passwd), &String::from_utf8_lossy(&group))
}

fn resolve(user: &str, passwd: &str, group: &str) -> Result<Credentials, Refused> {
    let (name, group_name) = user.split_once(':').unwrap_or((user, ""));
    let name = if name.is_empty() { "0" } else { name };
    let number: Option<u32> = name.parse().ok();
    let entry = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .filter(|fields| fields.len() >= 6)
        .find(|fields| fields[0] == name || (number.is_some() && fields[2].parse().ok() == number));
    let from_entry = entry.and_then(|fields| {
        let (uid, gid) = (fields[2].parse().ok()?, fields[3].parse().ok()?);
        Some((fields[0], uid, gid, fields[5]))
    });
    let (login, uid, own_gid, home) = match (from_entry, number) {
        (Some(found), _) => found,
        (None, Some(uid)) => ("", uid, 0, "/"),
        (None, None) => return Err(Refused::new("no_such_user", format!("no user {name} in /etc/passwd"))),
    };
    let (gid, groups) = if group_name.is_empty() {
        (own_gid, groups_of(login, group))
    } else {
        (group_number(group_name, group)?, Vec::new())
    };
    let home = if home.is_empty() { "/" } else { home };
    Ok(Credentials { uid, gid, groups, home: home.to_owned() })
}

fn groups_of(login: &str, group: &str) -> Vec<u32> {
    let is_member = |fields: &Vec<&str>| {
        fields.len() >= 4 && !login.is_empty() && fields[3].split(',').any(|name| name == login)
    };
    group
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .filter(is_member)
        .filter_map(|fields| fields[2].parse().ok())
        .collect()
}

fn group_number(name: &str, group: &str) -> Result<u32, Refused> {
    let named = group
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.len() >= 3 && fields[0] == name)
        .and_then(|fields| fields[2].parse().ok());
    named
        .or_else(|| name.parse().ok())
        .ok_or_else(|| Refused::new("no_such_user", format!("no group {name} in /etc/group")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34::/srv:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlogs:x:50:other,web\nadm:x:4:web\n";

    fn found(user: &str) -> (u32, u32, Vec<u32>, String) {
        let c = resolve(user, PASSWD, GROUP).unwrap();
        (c.uid, c.gid, c.groups, c.home)
    }

    #[test]
    fn users_are_named_numbered_and_given_groups_as_in_an_image_config() {
        assert_eq!(found(""), (0, 0, vec![], "/root".into()));
        assert_eq!(found("web"), (33, 34, vec![50, 4], "/srv".into()));
        assert_eq!(found("33"), (33, 34, vec![50, 4], "/srv".into()));
        assert_eq!(found("web:logs"), (33, 50, vec![], "/srv".into()));
        assert_eq!(found("1000:1001"), (1000, 1001, vec![], "/".into()));
        assert_eq!(found("1000"), (1000, 0, vec![], "/".into()));
    }

    #[test]
    fn unknown_names_are_refused() {
        for user in ["nobody", "web:nogroup", "-1"] {
            assert_eq!(resolve(user, PASSWD, GROUP).unwrap_err().code, "no_such_user", "{user}");
        }
    }
}
