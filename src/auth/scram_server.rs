//! The server's side of SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, 7677; `tls-server-end-point` of
//! RFC 5929), which accepts and refuses what auth-sasl.c and auth-scram.c do, in their words. Pure.

use super::Error;
use super::attributes::{Attributes, malformed, shown, shown_text};
use super::claim::Claim;
use super::keys::{Key, ScramKeys};
use super::packet::{self, MAX_SASL_BODY, from_base64, to_base64};
use super::secret::{ScramSecret, Secret};
use subtle::ConstantTimeEq;

pub const SCRAM_SHA_256: &str = "SCRAM-SHA-256";
pub const SCRAM_SHA_256_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// SCRAM_RAW_NONCE_LEN (scram-common.h): random bytes in a nonce, before base64.
const RAW_NONCE_LEN: usize = 18;

/// A nonce of this side, from the operating system.
pub(super) fn random_nonce() -> Result<String, Error> {
    let mut raw = [0; RAW_NONCE_LEN];
    getrandom::fill(&mut raw).map_err(|_| Error::RandomNonce)?;
    Ok(to_base64(&raw))
}

/// What to send after a message of the client.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// The data of AuthenticationSASLContinue; another message will come.
    Challenge(Vec<u8>),
    /// The data of AuthenticationSASLFinal. The client has shown that it knows the password.
    Proven { server_final: Vec<u8>, keys: ScramKeys },
}

/// One exchange. It goes on to the end whoever the client says to be, so that names cannot be probed.
#[derive(Debug)]
pub struct ScramServer {
    claim: Claim,
    secret: ScramSecret,
    /// For a secret that is made up: the reason for the log, if there is one.
    doomed: Option<String>,
    /// `tls-server-end-point` of our certificate; with it PLUS is offered.
    binding: Option<Vec<u8>>,
    nonce: String,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The client may choose a mechanism.
    Offered,
    /// It chose one without a first response, which comes now.
    Chosen {
        plus: bool,
    },
    Challenged(Challenged),
    Over,
}

#[derive(Debug)]
struct Challenged {
    plus: bool,
    /// `n`, `y` or `p`.
    binding_flag: u8,
    client_first_bare: Vec<u8>,
    server_first: Vec<u8>,
    /// The client's and ours.
    nonce: Vec<u8>,
}

impl ScramServer {
    /// `mock_nonce` is the cluster's `mock_authentication_nonce` (pg_control). `binding` is the hash of the
    /// certificate that this connection's TLS shows, by RFC 5929 section 4; `None` without TLS.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn new(claim: Claim, mock_nonce: &[u8; 32], binding: Option<Vec<u8>>) -> Result<Self, Error> {
        Ok(Self::with_nonce(claim, mock_nonce, binding, random_nonce()?))
    }

    /// With a nonce that is not random; for tests. It is printable and has no comma.
    pub fn with_nonce(claim: Claim, mock_nonce: &[u8; 32], binding: Option<Vec<u8>>, nonce: String) -> Self {
        let (secret, doomed) = match claim.secret() {
            Ok(Secret::Scram(secret)) => (secret.clone(), None),
            unusable => {
                let log = match unusable {
                    Ok(_) => format!("User \"{}\" does not have a valid SCRAM secret.", claim.role()),
                    Err(log) => log.to_owned(),
                };
                (ScramSecret::mock(claim.role_bytes(), mock_nonce), Some(log))
            }
        };
        // An empty hash would bind to nothing.
        let binding = binding.filter(|hash| !hash.is_empty());
        Self { claim, secret, doomed, binding, nonce, state: State::Offered }
    }

    /// For AuthenticationSASL, in this order; a zero byte ends each name and the list.
    pub fn mechanisms(&self) -> &'static [&'static str] {
        if self.binding.is_some() { &[SCRAM_SHA_256_PLUS, SCRAM_SHA_256] } else { &[SCRAM_SHA_256] }
    }

    /// The body of the next `p` message, at most [`MAX_SASL_BODY`] bytes: SASLInitialResponse, then SASLResponse.
    ///
    /// # Errors
    /// Any ends the exchange. A wrong proof and a doomed claim are the same [`Error::Refused`] to the client.
    pub fn receive(&mut self, body: &[u8]) -> Result<Step, Error> {
        let state = std::mem::replace(&mut self.state, State::Over);
        if body.len() > MAX_SASL_BODY {
            return Err(self.claim.refused(Some("invalid message length".to_owned())));
        }
        match state {
            State::Offered => {
                let (name, rest) = packet::mechanism(body)?;
                let plus = self.chosen(name)?;
                match packet::first_response(rest)? {
                    Some(response) => self.first(plus, response),
                    None => {
                        self.state = State::Chosen { plus };
                        Ok(Step::Challenge(Vec::new()))
                    }
                }
            }
            State::Chosen { plus } => self.first(plus, body),
            State::Challenged(challenged) => self.last(&challenged, body),
            State::Over => Err(Error::State),
        }
    }

    /// Whether the mechanism binds the channel.
    fn chosen(&self, name: &[u8]) -> Result<bool, Error> {
        match self.mechanisms().iter().find(|offered| offered.as_bytes() == name) {
            Some(&offered) => Ok(offered == SCRAM_SHA_256_PLUS),
            None => Err(Error::Mechanism),
        }
    }

    fn first(&mut self, plus: bool, message: &[u8]) -> Result<Step, Error> {
        let mut read = Attributes::of(message)?;
        let binding_flag = read.peek();
        match binding_flag {
            b'n' | b'y' if plus => {
                return Err(malformed(
                    "The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include channel \
                     binding data.",
                ));
            }
            b'y' if self.binding.is_some() => return Err(Error::BindingNegotiation),
            b'n' | b'y' => {
                read.skip_byte();
                if read.peek() != b',' {
                    return Err(malformed(format!(
                        "Comma expected, but found character \"{}\".",
                        shown(read.peek())
                    )));
                }
                read.skip_byte();
            }
            b'p' if !plus => {
                return Err(malformed(
                    "The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message \
                     includes channel binding data.",
                ));
            }
            b'p' => {
                let kind = read.value_of(b'p')?;
                if kind != b"tls-server-end-point" {
                    return Err(Error::BindingType(shown_text(kind)));
                }
            }
            other => {
                return Err(malformed(format!("Unexpected channel-binding flag \"{}\".", shown(other))));
            }
        }
        match read.peek() {
            b',' => read.skip_byte(),
            b'a' => return Err(Error::AuthorizationIdentity),
            other => {
                return Err(malformed(format!(
                    "Unexpected attribute \"{}\" in client-first-message.",
                    shown(other)
                )));
            }
        }
        let client_first_bare = read.rest().to_vec();
        if read.peek() == b'm' {
            return Err(Error::Extension);
        }
        // The name is the startup packet's; libpq sends an empty one here.
        read.value_of(b'n')?;
        let nonce = read.value_of(b'r')?;
        if !nonce.iter().all(u8::is_ascii_graphic) {
            return Err(Error::NonceNotPrintable);
        }
        while !read.is_at_end() {
            read.any()?;
        }

        let nonce = [nonce, self.nonce.as_bytes()].concat();
        let parameters = format!(",s={},i={}", self.secret.salt_text(), self.secret.iterations());
        let server_first = [b"r=", nonce.as_slice(), parameters.as_bytes()].concat();
        self.state = State::Challenged(Challenged {
            plus,
            binding_flag,
            client_first_bare,
            server_first: server_first.clone(),
            nonce,
        });
        Ok(Step::Challenge(server_first))
    }

    fn last(&self, challenged: &Challenged, message: &[u8]) -> Result<Step, Error> {
        let mut read = Attributes::of(message)?;
        self.check_binding(challenged, read.value_of(b'c')?)?;
        let nonce = read.value_of(b'r')?;
        let (without_proof, proof) = loop {
            let before = read.before();
            if let (b'p', proof) = read.any()? {
                break (before, proof);
            }
        };
        let proof = from_base64(proof)
            .and_then(|proof| Key::from_slice(&proof))
            .ok_or_else(|| malformed("Malformed proof in client-final-message."))?;
        if !read.is_at_end() {
            return Err(malformed("Garbage found at the end of client-final-message."));
        }
        if nonce != challenged.nonce {
            return Err(Error::NonceMismatch);
        }

        let transcript =
            [&challenged.client_first_bare, &b","[..], &challenged.server_first, b",", without_proof];
        let client = proof.xor(&self.secret.stored_key.sign(&transcript));
        // The proof is computed for a doomed claim too, so that both take the same time.
        let is_proven = client.hash() == self.secret.stored_key;
        if !is_proven || self.doomed.is_some() {
            return Err(self.claim.refused(self.doomed.clone()));
        }
        let signature = self.secret.server_key.sign(&transcript);
        Ok(Step::Proven {
            server_final: format!("v={}", to_base64(signature.bytes())).into_bytes(),
            keys: ScramKeys { client, server: self.secret.server_key.clone() },
        })
    }

    /// The client repeats its flag and, with PLUS, says which certificate it has seen.
    fn check_binding(&self, challenged: &Challenged, value: &[u8]) -> Result<(), Error> {
        if challenged.plus {
            let hash = self.binding.as_deref().unwrap_or_default();
            let expected = to_base64(&[b"p=tls-server-end-point,,", hash].concat());
            return if bool::from(expected.as_bytes().ct_eq(value)) {
                Ok(())
            } else {
                Err(Error::BindingCheck)
            };
        }
        match (challenged.binding_flag, value) {
            // base64 of "n,," and "y,,".
            (b'n', b"biws") | (b'y', b"eSws") => Ok(()),
            _ => Err(Error::BindingAttribute),
        }
    }
}

#[cfg(test)]
mod tests;
