//! What requests and operators ask of the store in Redis; the parent keeps the connection and the leases.

use std::time::Duration;

use ipnet::IpNet;
use policy::rules::blocks::AutoBlock;
use policy::rules::limits::bucket::Bucket;
use policy::rules::limits::spend::StoreUnavailable;
use policy::rules::limits::{Charge, Charges, Readings};
use policy::values::time::Timestamp;
use tokio::time::timeout;

use super::{CHANGES, PATIENCE, PREFIX, REFILLS, RedisStore, limit_key, topic_key};
use crate::clock;
use crate::state::store::{Change, Failures, Put, Store, Topic};

fn failures_key(client: IpNet) -> String {
    format!("{PREFIX}failures:{client}")
}

/// The digits before the JSON of a stored change, see `put.lua`.
const DIGITS: usize = 20;

impl Store for RedisStore {
    async fn spend(&self, charges: &[Charge], now: Timestamp) -> Result<Readings, StoreUnavailable> {
        if !self.is_up() {
            return Err(StoreUnavailable);
        }
        let spent = self.leased_buckets.spend(charges, now, |question| self.ask(question));
        timeout(PATIENCE, spent).await.unwrap_or(Err(StoreUnavailable))
    }

    async fn refund(&self, charges: Charges, _: Timestamp) -> Result<(), StoreUnavailable> {
        self.refund_now(&charges);
        Ok(())
    }

    async fn refill(&self, bucket: &Bucket) -> Result<bool, StoreUnavailable> {
        let was_used_here = self.leased_buckets.refilled(bucket, clock::steady());
        let mut pipe = redis::Pipeline::new();
        pipe.del(limit_key(bucket));
        let (deleted,): (u64,) =
            self.call(async |mut connection| pipe.query_async(&mut connection).await).await?;
        let notice = redis::cmd("PUBLISH").arg(REFILLS).arg(bucket.to_string()).to_owned();
        self.call(async |mut connection| notice.query_async::<()>(&mut connection).await).await?;
        Ok(was_used_here || deleted > 0)
    }

    async fn count_failure(
        &self,
        client: IpNet,
        rule: AutoBlock,
        _: Timestamp,
    ) -> Result<Failures, StoreUnavailable> {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let mut call = self.scripts.count_failure.prepare_invoke();
        call.key(failures_key(client)).arg(millis(rule.window)).arg(rule.failures).arg(millis(rule.memory()));
        let (count, offences) =
            self.call(async |mut connection| call.invoke_async(&mut connection).await).await?;
        Ok(Failures { count, offences })
    }

    async fn clear_failures(&self, client: IpNet) -> Result<(), StoreUnavailable> {
        let command = redis::cmd("HDEL").arg(failures_key(client)).arg("count").arg("began").to_owned();
        self.call(async |mut connection| command.query_async(&mut connection).await).await
    }

    async fn put(&self, change: &Change) -> Result<Put, StoreUnavailable> {
        let text = serde_json::to_string(change).map_err(|_| StoreUnavailable)?;
        let mut call = self.scripts.put.prepare_invoke();
        call.key(topic_key(change.topic)).arg(&change.key).arg(text);
        call.arg(format!("{:0DIGITS$}", change.changed_at)).arg(CHANGES);
        let known: String =
            self.call(async |mut connection| call.invoke_async(&mut connection).await).await?;
        Ok(known.parse().map_or(Put::Stored, Put::Known))
    }

    async fn all(&self, topic: Topic) -> Result<Vec<Change>, StoreUnavailable> {
        let texts = self.read_all(topic).await?;
        let parse = |text: &String| serde_json::from_str::<Change>(text.get(DIGITS..)?).ok();
        let (texts, all): (Vec<String>, Vec<Change>) =
            texts.into_iter().filter_map(|text| Some((text.clone(), parse(&text)?))).unzip();
        let now = clock::wall();
        // Any replica that sees an entry without effect removes it, unless the entry has changed meanwhile.
        for (text, change) in texts.iter().zip(&all).filter(|(_, change)| !change.matters(now)) {
            let mut call = self.scripts.forget.prepare_invoke();
            call.key(topic_key(topic)).arg(&change.key).arg(text);
            self.call(async |mut connection| call.invoke_async::<()>(&mut connection).await).await?;
        }
        Ok(all.into_iter().filter(|change| change.matters(now)).collect())
    }
}
