//! Mail: to an SMTP server, or to files where none is configured and nobody minds.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use lettre::message::Mailbox;
use lettre::message::header::{ContentType, MIME_VERSION_1_0};
use lettre::transport::smtp::authentication::Credentials;
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor};
use tracing::{info, warn};

use crate::config::{MailConfig, Profile};
use crate::secrets::Secret;

/// The secret that opens the SMTP server, beside the user in `mail.url`.
pub(crate) const SMTP_PASSWORD: &str = "SMTP_PASSWORD";

/// Sends mail.
pub(crate) struct Mail {
    from: Mailbox,
    reset_url: String,
    way: Way,
}

enum Way {
    Smtp(AsyncSmtpTransport<Tokio1Executor>),
    Files(PathBuf),
    Nowhere,
}

impl Mail {
    pub(crate) fn new(
        config: &MailConfig,
        password: Option<&Secret>,
        profile: Profile,
    ) -> anyhow::Result<Self> {
        let way = match config.url.as_str() {
            "" if profile == Profile::Production => {
                warn!("mail.url is empty: nobody can reset a password");
                Way::Nowhere
            }
            "" => Way::Files(config.dir.clone()),
            url => {
                let mut builder = AsyncSmtpTransport::<Tokio1Executor>::from_url(url).context("mail.url")?;
                if let Some(password) = password {
                    let user = user_of(url)
                        .context("mail.url: expected smtp://USER@HOST, for there is an SMTP_PASSWORD")?;
                    let password = String::from_utf8_lossy(password.expose()).into_owned();
                    builder = builder.credentials(Credentials::new(user, password));
                }
                Way::Smtp(builder.build())
            }
        };
        let from =
            config.from.parse().with_context(|| format!("mail.from: an address (got {:?})", config.from))?;
        Ok(Self { from, reset_url: config.reset_url.clone(), way })
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
    pub(crate) async fn send_reset(&self, to: &str, username: &str, token: &str) -> anyhow::Result<()> {
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
        let message = self.message(to, "A new password", text)?;
        match &self.way {
            Way::Smtp(server) => drop(server.send(message).await?),
            Way::Files(dir) => {
                let file = dir.join(format!("{}.eml", uuid::Uuid::now_v7()));
                let (path, bytes) = (file.clone(), message.formatted());
                tokio::task::spawn_blocking(move || write_private(&path, &bytes)).await??;
                info!(file = %file.display(), "mail written to a file, for mail.url is empty");
            }
            Way::Nowhere => anyhow::bail!("mail.url is empty"),
        }
        Ok(())
    }
}

/// What is in the file opens an account.
fn write_private(file: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    if let Some(dir) = file.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let mut out = std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(file)?;
    Ok(out.write_all(bytes)?)
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
    use super::user_of;

    #[test]
    fn the_user_is_the_one_in_the_address() {
        assert_eq!(user_of("smtps://ann@mail.test:465?tls=required"), Some("ann".to_owned()));
        assert_eq!(user_of("smtp://ann%40example.org:x@mail.test"), Some("ann@example.org".to_owned()));
        assert_eq!(user_of("smtp://mail.test"), None);
        assert_eq!(user_of("smtp://ann%4@mail.test"), None, "no percent-encoding");
    }
}
