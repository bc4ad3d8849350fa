//! Mail: to an SMTP server, or to files where none is configured, except in production.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use lettre::message::Mailbox;
use lettre::message::header::{ContentType, MIME_VERSION_1_0};
use lettre::transport::smtp::authentication::Credentials;
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor};
use tracing::{info, warn};
use url::Url;

use crate::config::secrets::Secret;
use crate::config::{MailConfig, Profile};

/// For one exchange with the SMTP server.
pub(crate) const SEND_TIMEOUT: Duration = Duration::from_secs(20);

/// Sends mail.
pub(crate) struct Mail {
    from: Mailbox,
    reset_url: String,
    transport: Transport,
}

enum Transport {
    Smtp(AsyncSmtpTransport<Tokio1Executor>),
    Files(PathBuf),
    Nowhere,
}

/// Why a mail was not sent.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct MailError {
    text: String,
    /// Whether it will never be: its receiver is refused.
    pub(crate) is_final: bool,
    /// The server's code; 0 where it did not answer with one. Texts differ each time.
    pub(crate) kind: u16,
}

impl MailError {
    fn of_server(error: &lettre::transport::smtp::Error) -> Self {
        // 550 to 553 are about the receiver, unless it is policy (RFC 3463, X.7.X): that and all else can be fixed in
        // the settings.
        let (code, text) = (error.status().map(u16::from), described(error));
        let of_the_receiver = code.is_some_and(|code| (550..=553).contains(&code)) && !text.contains("5.7.");
        Self { is_final: error.is_permanent() && of_the_receiver, kind: code.unwrap_or_default(), text }
    }

    fn unfit(error: &anyhow::Error) -> Self {
        Self { text: format!("{error:#}"), is_final: true, kind: 0 }
    }

    /// One that may go away: the mail is tried again.
    pub(crate) fn temporary(text: String) -> Self {
        Self { text, is_final: false, kind: 0 }
    }
}

/// An error with its causes.
fn described(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

impl Mail {
    pub(crate) fn new(
        config: &MailConfig,
        password: Option<&Secret>,
        profile: Profile,
    ) -> anyhow::Result<Self> {
        let transport = match config.url.as_str() {
            "" if profile == Profile::Production => {
                warn!("mail.url is empty: passwords cannot be reset by mail");
                Transport::Nowhere
            }
            "" => Transport::Files(config.dir.clone()),
            url => Transport::Smtp(server(url, password).context("mail.url")?),
        };
        let from =
            config.from.parse().with_context(|| format!("mail.from: an address (got {:?})", config.from))?;
        Ok(Self { from, reset_url: config.reset_url.clone(), transport })
    }

    /// Whether mail goes anywhere.
    pub(crate) const fn is_sent(&self) -> bool {
        !matches!(self.transport, Transport::Nowhere)
    }

    /// A message that large providers take: they refuse one without `Message-ID`, and guess at one without a type.
    fn message(&self, to: &str, subject: &str, text: String) -> anyhow::Result<Message> {
        let id = format!("<{}@{}>", uuid::Uuid::now_v7().simple(), self.from.email.domain());
        let message = Message::builder()
            .from(self.from.clone())
            .to(to.parse().context("the account's address")?)
            .subject(subject)
            .message_id(Some(id))
            .date_now()
            .header(MIME_VERSION_1_0)
            .header(ContentType::TEXT_PLAIN)
            .body(text)?;
        Ok(message)
    }

    /// Sends a token to reset the password of `username`.
    pub(crate) async fn send_reset(&self, to: &str, username: &str, token: &str) -> Result<(), MailError> {
        let how = if self.reset_url.is_empty() {
            format!("Send this token with a new password to POST /v1/auth/reset-password:\n\n{token}")
        } else {
            format!(
                "Open this address to choose a new password:\n\n{}",
                self.reset_url.replace("{token}", token)
            )
        };
        let text = format!(
            "Somebody asked for a new password for the account {username}.\n\n{how}\n\nIt works once, for 30 minutes. \
             If it was not you, there is nothing to do.\n"
        );
        let message = self.message(to, "A new password", text).map_err(|error| MailError::unfit(&error))?;
        match &self.transport {
            Transport::Smtp(server) => {
                server.send(message).await.map_err(|error| MailError::of_server(&error))?;
            }
            Transport::Files(dir) => {
                let file = dir.join(format!("{}.eml", uuid::Uuid::now_v7()));
                let (path, bytes) = (file.clone(), message.formatted());
                // What is in the file opens an account: nobody else reads it.
                let write = move || service::files::replace(&path, |out| out.write_all(&bytes));
                let written = tokio::task::spawn_blocking(write).await;
                let written = written.map_err(|error| MailError::temporary(error.to_string()))?;
                written.map_err(|error| MailError::temporary(format!("`{}`: {error}", file.display())))?;
                info!(file = %file.display(), "mail written to a file, because mail.url is empty");
            }
            Transport::Nowhere => return Err(MailError::unfit(&anyhow::anyhow!("mail.url is empty"))),
        }
        Ok(())
    }
}

/// The SMTP server that `url` names. What the address cannot mean is refused, and so is a password that would go over
/// the network unencrypted, unless the address says so.
fn server(url: &str, password: Option<&Secret>) -> anyhow::Result<AsyncSmtpTransport<Tokio1Executor>> {
    let allowed =
        "expected smtp://[USER@]HOST[:PORT][?tls=required|opportunistic|none] or smtps://[USER@]HOST[:PORT]";
    let parsed = Url::parse(url).ok().filter(|url| {
        let has_host = url.host_str().is_some_and(|host| !host.is_empty()) && url.port() != Some(0);
        has_host && matches!(url.path(), "" | "/") && url.fragment().is_none()
    });
    let mut parsed = parsed.context(allowed)?; // which does not repeat it: there may be a password in it
    let tls = match (parsed.scheme(), parsed.query()) {
        ("smtps", None) => "wrapped",
        ("smtp", None) => "",
        ("smtp", Some("tls=required")) => "required",
        ("smtp", Some("tls=opportunistic")) => "opportunistic",
        ("smtp", Some("tls=none")) => "none",
        _ => bail!(allowed),
    };
    let user = user_of(url);
    if password.is_some() && user.is_none() {
        bail!("{allowed}: with a USER, because there is an SMTP_PASSWORD");
    }
    let named = user.as_ref().is_some_and(|user| !user.is_empty());
    if named && password.is_none() && parsed.password().is_none() {
        bail!("it names a user, and there is no SMTP_PASSWORD");
    }
    if tls.is_empty() && (password.is_some() || parsed.password().is_some()) {
        bail!("the password would be sent unencrypted: add ?tls=required, or ?tls=none where that is meant");
    }
    if matches!(tls, "" | "none") {
        warn!(
            "mail.url: mails, and the tokens in them, are sent over the network unencrypted: ?tls=required encrypts them"
        );
        parsed.set_query(None);
    }
    let mut builder =
        AsyncSmtpTransport::<Tokio1Executor>::from_url(parsed.as_str())?.timeout(Some(SEND_TIMEOUT));
    if let (Some(password), Some(user)) = (password, user) {
        let password = String::from_utf8_lossy(password.expose()).into_owned();
        builder = builder.credentials(Credentials::new(user, password));
    }
    Ok(builder.build())
}

/// The user in an address, percent-decoded: `ann%40example.org` is `ann@example.org`.
fn user_of(url: &str) -> Option<String> {
    let authority = url.split_once("://")?.1.split(['/', '?']).next()?;
    let (user, _) = authority.rsplit_once('@')?;
    let mut encoded = user.split(':').next().unwrap_or(user).bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = encoded.next() {
        decoded.push(match byte {
            b'%' => {
                let digit =
                    |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                let (high, low) = (digit(encoded.next()?)?, digit(encoded.next()?)?);
                high << 4 | low
            }
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_that_means_nothing_is_refused_without_repeating_it() {
        let secret = Secret::of(b"hush");
        let fault = |url: &str, password| server(url, password).err().map(|error| format!("{error:#}"));
        for url in [
            "smtp://mail.test?tls=bad",
            "smtp://mail.test?TLS=required",
            "smtps://mail.test?tls=bad",
            "smtp://mail.test?tls=required&x=1",
            "http://mail.test",
            "mail.test:25",
            "smtp://",
            "smtp://u:hush@mail.test:x",
            "smtp://mail.test/path",
            "smtp://mail.test:0",
            "smtp://mail.test#x",
        ] {
            let said = fault(url, None).unwrap_or_default();
            assert!(said.starts_with("expected smtp://") && !said.contains("hush"), "{url}: {said}");
        }
        let said = fault("smtp://ann@mail.test", Some(&secret)).unwrap();
        assert!(said.starts_with("the password would be sent unencrypted"), "{said}");
        assert!(fault("smtp://ann:hush@mail.test", None).is_some());
        assert!(fault("smtp://mail.test", Some(&secret)).unwrap().contains("with a USER"));
        assert!(fault("smtp://ann@mail.test?tls=none", None).unwrap().contains("there is no SMTP_PASSWORD"));
        for url in
            ["smtp://ann@mail.test?tls=none", "smtp://ann@mail.test?tls=required", "smtps://ann@mail.test"]
        {
            assert_eq!(fault(url, Some(&secret)), None, "{url}");
        }
        assert_eq!(fault("smtp://mail.test", None), None, "only mails are unencrypted, which is logged");
    }

    #[test]
    fn the_user_is_the_one_in_the_address() {
        assert_eq!(user_of("smtps://ann@mail.test:465?tls=required"), Some("ann".to_owned()));
        assert_eq!(user_of("smtp://ann%40example.org:x@mail.test"), Some("ann@example.org".to_owned()));
        assert_eq!(user_of("smtp://mail.test"), None);
        assert_eq!(user_of("smtp://ann%4@mail.test"), None, "no percent-encoding");
    }
}
