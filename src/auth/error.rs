//! Why a login fails: what the client is told, in the server's words, and what only the log may say. Pure.

/// The end of a login. To the client each is FATAL, as every error before authentication is in the server.
///
/// `Display` is the MESSAGE field; [`Error::sqlstate`] and [`Error::detail`] are the other fields that the
/// client gets. [`Error::log_detail`] must never reach the client: it tells whether a role exists.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A SCRAM message that cannot be read; the DETAIL says where.
    #[error("malformed SCRAM message")]
    Malformed(String),
    #[error("invalid SCRAM response")]
    NonceMismatch,
    #[error("non-printable characters in SCRAM nonce")]
    NonceNotPrintable,
    #[error("client selected an invalid SASL authentication mechanism")]
    Mechanism,
    #[error("unsupported SCRAM channel-binding type \"{0}\"")]
    BindingType(String),
    #[error("unexpected SCRAM channel-binding attribute in client-final-message")]
    BindingAttribute,
    /// The client says `y`, yet PLUS was offered: somebody between has taken it off the list.
    #[error("SCRAM channel binding negotiation error")]
    BindingNegotiation,
    /// The client is bound to another TLS channel than ours.
    #[error("SCRAM channel binding check failed")]
    BindingCheck,
    #[error("client uses authorization identity, but it is not supported")]
    AuthorizationIdentity,
    #[error("client requires an unsupported SCRAM extension")]
    Extension,
    /// A message after the exchange has ended.
    #[error("invalid SCRAM exchange state")]
    State,
    /// The body of a message is not what its type says; the texts are pqformat.c's and auth.c's.
    #[error("{0}")]
    Packet(&'static str),
    /// For the caller, who reads the type byte.
    #[error("expected SASL response, got message type {0}")]
    ExpectedSasl(u8),
    /// For the caller, who reads the type byte.
    #[error("expected password response, got message type {0}")]
    ExpectedPassword(u8),
    #[error("empty password returned by client")]
    EmptyPassword,
    /// Wrong password, unknown role, no usable secret, expired: one answer for all of them.
    #[error("password authentication failed for user \"{role}\"")]
    Refused { role: String, log: Option<String> },
    #[error("could not generate random nonce")]
    RandomNonce,
    #[error("could not generate random MD5 salt")]
    RandomSalt,
    /// Ours as a client: what the server sent cannot be read.
    #[error("malformed SCRAM message from the server: {0}")]
    FromServer(String),
    /// Ours as a client: an `e=` instead of a signature.
    #[error("error received from server in SCRAM exchange: {0}")]
    ServerSays(String),
    /// Ours as a client: whoever answers does not know the role's secret.
    #[error("incorrect server signature")]
    ServerSignature,
}

impl Error {
    /// The five characters of the SQLSTATE.
    pub fn sqlstate(&self) -> &'static str {
        match self {
            Self::Malformed(_)
            | Self::NonceMismatch
            | Self::NonceNotPrintable
            | Self::Mechanism
            | Self::BindingType(_)
            | Self::BindingAttribute
            | Self::Packet(_)
            | Self::ExpectedSasl(_)
            | Self::ExpectedPassword(_)
            | Self::FromServer(_)
            | Self::ServerSays(_) => "08P01",
            Self::BindingNegotiation | Self::BindingCheck | Self::ServerSignature => "28000",
            Self::AuthorizationIdentity | Self::Extension => "0A000",
            Self::EmptyPassword | Self::Refused { .. } => "28P01",
            Self::State | Self::RandomNonce | Self::RandomSalt => "XX000",
        }
    }

    /// The DETAIL field for the client.
    pub fn detail(&self) -> Option<&str> {
        match self {
            Self::Malformed(detail) => Some(detail),
            Self::NonceMismatch => Some("Nonce does not match."),
            Self::BindingNegotiation => Some(
                "The client supports SCRAM channel binding but thinks the server does not.  \
                 However, this server does support channel binding.",
            ),
            _ => None,
        }
    }

    /// The reason for the log only.
    pub fn log_detail(&self) -> Option<&str> {
        match self {
            Self::Refused { log, .. } => log.as_deref(),
            _ => None,
        }
    }
}
