//! A name from a startup packet and what the catalog has for it: which exchange is run, and the cleartext
//! password's own check (auth.c, CheckPWChallengeAuth and CheckPasswordAuth; crypt.c). Pure.

use super::{Error, Md5Secret, ScramKeys, Secret, packet};

/// What pg_authid has for a role that exists.
#[derive(Debug, Clone)]
pub struct Found {
    /// `rolpassword`; `None` is null.
    pub secret: Option<Secret>,
    /// `rolvaliduntil` in microseconds since 2000-01-01 00:00 UTC; `None` is null. Infinity is `i64::MAX`.
    pub valid_until: Option<i64>,
}

/// A challenge and response of either kind: as a line of pg_hba.conf asks for it, as `password_encryption` has
/// it, as it is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Challenge {
    Md5,
    Scram,
}

/// What a client has shown to know, and what logs in as the same role elsewhere in the same cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    Md5(Md5Secret),
    Scram(ScramKeys),
}

/// A client that says to be a role, before it has shown it.
#[derive(Debug)]
pub struct Claim {
    role: Vec<u8>,
    /// The error is the reason for the log why nothing can match (crypt.c, get_role_password).
    secret: Result<Secret, String>,
}

impl Claim {
    /// `role` is the startup packet's name, in whatever encoding; `found` is `None` where no such role exists;
    /// `now` is in microseconds since 2000-01-01 00:00 UTC.
    pub fn new(role: &[u8], found: Option<Found>, now: i64) -> Self {
        let name = String::from_utf8_lossy(role);
        let secret = match found {
            None => Err(format!("Role \"{name}\" does not exist.")),
            Some(Found { secret: None, .. }) => Err(format!("User \"{name}\" has no password assigned.")),
            Some(Found { valid_until: Some(until), .. }) if until < now => {
                Err(format!("User \"{name}\" has an expired password."))
            }
            Some(Found { secret: Some(secret), .. }) => Ok(secret),
        };
        Self { role: role.to_vec(), secret }
    }

    /// Which exchange the server runs for this claim where pg_hba.conf asks for `method`. `md5` there means
    /// whichever fits the secret; a name without one gets what `password_encryption` would have stored, so that
    /// it cannot be told from the others. `scram-sha-256` is SCRAM always, and fails for an md5 secret.
    pub fn challenge(&self, method: Challenge, password_encryption: Challenge) -> Challenge {
        let stored = match &self.secret {
            Ok(Secret::Md5(_)) => Challenge::Md5,
            Ok(Secret::Scram(_) | Secret::Unusable) => Challenge::Scram,
            Err(_) => password_encryption,
        };
        if method == Challenge::Md5 { stored } else { Challenge::Scram }
    }

    /// Judges the body of a PasswordMessage that holds the password itself (method `password`). It costs as many
    /// PBKDF2 iterations as [`Claim::iterations`] says.
    ///
    /// # Errors
    /// [`Error::Packet`], [`Error::EmptyPassword`] or [`Error::Refused`].
    pub fn password(&self, body: &[u8]) -> Result<Credential, Error> {
        let password = packet::password(body)?;
        let credential = match &self.secret {
            Err(log) => return Err(self.refused(Some(log.clone()))),
            Ok(Secret::Unusable) => {
                let log = format!("Password of user \"{}\" is in unrecognized format.", self.role());
                return Err(self.refused(Some(log)));
            }
            Ok(Secret::Scram(secret)) => secret.keys_of(password).map(Credential::Scram),
            Ok(Secret::Md5(secret)) => {
                let given = Md5Secret::derive(password, &self.role);
                (given == *secret).then_some(Credential::Md5(given))
            }
        };
        credential.ok_or_else(|| self.refused(Some(self.mismatch())))
    }

    /// How many PBKDF2 iterations [`Claim::password`] will take; 4096 are a millisecond or two, and there is no
    /// limit but 2147483647, so a network thread does not do many itself.
    pub fn iterations(&self) -> u32 {
        match &self.secret {
            Ok(Secret::Scram(secret)) => secret.iterations(),
            _ => 0,
        }
    }

    pub(super) fn secret(&self) -> Result<&Secret, &str> {
        self.secret.as_ref().map_err(String::as_str)
    }

    /// The name for messages.
    pub(super) fn role(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.role)
    }

    pub(super) fn role_bytes(&self) -> &[u8] {
        &self.role
    }

    pub(super) fn mismatch(&self) -> String {
        format!("Password does not match for user \"{}\".", self.role())
    }

    pub(super) fn refused(&self, log: Option<String>) -> Error {
        Error::Refused { role: self.role().into_owned(), log }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ScramSecret;
    use super::*;

    fn claim(secret: Option<Secret>, valid_until: Option<i64>) -> Claim {
        Claim::new(b"bob", Some(Found { secret, valid_until }), 100)
    }

    fn scram() -> Option<Secret> {
        Some(Secret::Scram(ScramSecret::derive(b"secret", b"salt", 3)))
    }

    #[test]
    fn a_cleartext_password_yields_the_keys() {
        let claim = claim(scram(), Some(100));
        assert_eq!(claim.iterations(), 3);
        let keys = ScramKeys::derive(b"secret", b"salt", 3);
        assert_eq!(claim.password(b"secret\0"), Ok(Credential::Scram(keys)));
    }

    #[test]
    fn a_cleartext_password_that_does_not_fit_is_refused_with_its_reason() {
        for (claim, log) in [
            (claim(scram(), None), "Password does not match for user \"bob\"."),
            (claim(scram(), Some(99)), "User \"bob\" has an expired password."),
            (claim(None, None), "User \"bob\" has no password assigned."),
            (claim(None, Some(99)), "User \"bob\" has no password assigned."),
            (claim(Some(Secret::parse("x")), None), "Password of user \"bob\" is in unrecognized format."),
            (Claim::new(b"bob", None, 100), "Role \"bob\" does not exist."),
        ] {
            let error = claim.password(b"x\0").unwrap_err();
            assert_eq!(error.log_detail(), Some(log));
            assert_eq!(error.to_string(), "password authentication failed for user \"bob\"");
            assert_eq!((error.sqlstate(), error.detail()), ("28P01", None));
        }
    }

    #[test]
    fn a_name_in_another_encoding_is_shown_as_far_as_it_can_be() {
        let error = Claim::new(b"b\xf6b", None, 0).password(b"x\0").unwrap_err();
        assert_eq!(error.to_string(), "password authentication failed for user \"b\u{fffd}b\"");
    }
}
