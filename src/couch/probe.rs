//! Checks a server for `kz-record-call check`, without changing anything there.

use std::time::Duration;

use reqwest::Method;
use reqwest::header::DATE;
use serde_json::Value;

use crate::kazoo::time::{Clock, Moment};

use super::client::{Couch, answer, no_answer};
use super::{CouchError, Version};

/// The server's own description.
#[derive(Debug, Clone)]
pub struct Welcome {
    /// `None`: the server reports no version that can be parsed.
    pub version: Option<Version>,
    pub is_bigcouch: bool,
    /// By how many milliseconds, at least, our clock is ahead of the server's clock (negative: behind). `None`: the server reports no time.
    pub ahead_ms: Option<i64>,
}

/// Our user, as the server sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// `None`: not logged in.
    pub name: Option<String>,
    /// Whether the user may create databases.
    pub is_admin: bool,
}

impl Couch {
    /// Reads the server's welcome, with our credentials.
    ///
    /// # Errors
    /// `NoAnswer`, or the error that the server answered.
    pub async fn welcome(&self, clock: &Clock) -> Result<Welcome, CouchError> {
        let (asked, answered, date, welcome) = self
            .send_with(async {
                let asked = clock.now();
                let response = self.server(Method::GET, "").send().await;
                let response = response.map_err(|error| no_answer(&error))?;
                let answered = clock.now();
                let date = response.headers().get(DATE).cloned();
                let (_, welcome) = answer(Ok(response), "", self.most).await?;
                Ok((asked, answered, date, welcome))
            })
            .await?;
        let date = date.as_ref().and_then(|date| date.to_str().ok());
        let date = date.and_then(|date| httpdate::parse_http_date(date).ok());
        let told = date.and_then(|date| date.duration_since(std::time::UNIX_EPOCH).ok());
        let ahead_ms = told.map(|told| ahead(asked, answered, told));
        Ok(Welcome {
            version: Version::read(&welcome),
            is_bigcouch: welcome.get("bigcouch").is_some(),
            ahead_ms,
        })
    }

    /// Reads which user we are.
    ///
    /// # Errors
    /// `Unauthorized` for wrong credentials.
    pub async fn session(&self) -> Result<Session, CouchError> {
        let (_, session) = self.ask(self.server(Method::GET, "_session"), "").await?;
        let user = session.get("userCtx").unwrap_or(&Value::Null);
        let roles = user.get("roles").and_then(Value::as_array);
        Ok(Session {
            name: user.get("name").and_then(Value::as_str).map(str::to_owned),
            is_admin: roles.is_some_and(|roles| roles.iter().any(|role| role == "_admin")),
        })
    }
}

/// How far our clock is ahead, at least. The server reported its time in whole seconds, at some moment between `asked` and `answered`.
fn ahead(asked: Moment, answered: Moment, told: Duration) -> i64 {
    let ms = |moment: Moment| moment.unix_micros() / 1000;
    let told = i64::try_from(told.as_millis()).unwrap_or(i64::MAX);
    let (earliest, latest) = (ms(asked) - told.saturating_add(999), ms(answered) - told);
    if earliest > 0 {
        earliest
    } else if latest < 0 {
        latest
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_may_be_equal_count_as_equal() {
        let at = |ms: i64| Moment::from_unix_micros(ms * 1000);
        let told = Duration::from_secs(100);
        for (asked, answered, is) in [
            (100_000, 100_050, 0),
            (100_900, 101_500, 0),
            (99_500, 100_100, 0),
            (102_000, 102_100, 1001),
            (90_000, 90_100, -9900),
        ] {
            assert_eq!(ahead(at(asked), at(answered), told), is, "{asked}");
        }
    }
}
