//! What the simulated ecallmgr and its switches do with each message.

use std::sync::atomic::Ordering;

use lapin::{
    BasicProperties,
    options::BasicPublishOptions,
    types::{AMQPValue, FieldTable},
};
use serde_json::{Value, json};

use super::{
    super::{
        super::{
            http_put::{self, Put},
            options::UploadFault,
            wire::{Clock, Object, defaults, encode, gregorian, merge, split_address, text},
        },
        calls::{channel_variables, switch_of},
    },
    Shared,
};

const ECALLMGR: &str = "ecallmgr@load.example.com";

impl Shared {
    /// Begins a recording, and ends it if it is to end.
    pub(super) async fn command(&self, body: &[u8]) -> anyhow::Result<()> {
        let command: Object = serde_json::from_slice(body).unwrap_or_default();
        let (Some("start"), Some(call_id), Some(name)) = (
            text(&command, "Record-Action"),
            text(&command, "Call-ID"),
            text(&command, "Media-Name"),
        ) else {
            return Ok(());
        };
        let path = format!("/tmp/{name}");
        if let Ok(mut files) = self.files.lock() {
            files.insert(path.clone(), call_id.to_owned());
        }
        self.event(call_id, "RECORD_START", self.recording(&command, &path))
            .await?;
        if self.options.ends {
            if let Ok(mut ended) = self.ended.lock() {
                ended.insert(call_id.to_owned());
            }
            let mut told = self.recording(&command, &path);
            told["Length"] = json!(self.options.file.millis.to_string());
            told["Channel-State"] = json!("HANGUP");
            let file = &self.options.file;
            told["Recording"]["File-Size"] = json!(file.bytes);
            told["Recording"]["File-MilliSeconds"] = json!(file.millis);
            told["Recording"]["Completion-Cause"] = json!("success-silence");
            self.event(call_id, "RECORD_STOP", told).await?;
            let over = json!({"Channel-State": "REPORTING", "Hangup-Cause": "NORMAL_CLEARING"});
            self.event(call_id, "CHANNEL_DESTROY", over).await?;
        }
        self.started.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// What an event says of a recording.
    fn recording(&self, command: &Object, path: &str) -> Value {
        let mut recording = json!({
            "ID": command.get("Media-Recording-ID"),
            "Name": command.get("Media-Name"),
            "Recorder": command.get("Media-Recorder"),
            "File-Path": path,
        });
        if let (Some(Value::Object(more)), Some(into)) = (command.get("Recording-Variables"), recording.as_object_mut())
        {
            into.extend(more.clone());
        }
        json!({"Application-Name": "record", "Application-Response": path, "Recording": recording})
    }

    async fn event(&self, call_id: &str, name: &str, extra: Value) -> anyhow::Result<()> {
        let node = switch_of(call_id, self.options.switches);
        let host = node.split_once('@').map_or(node.as_str(), |(_, host)| host);
        let micros = Clock::default().tick_micros();
        let mut body = defaults("call_event", name, "freeswitch", "1.0", &node);
        merge(
            &mut body,
            json!({
                "Msg-ID": micros.to_string(),
                "Timestamp": gregorian(micros),
                "Call-ID": call_id,
                "Call-Direction": "inbound",
                "Caller-ID-Name": "Extension 1000",
                "Caller-ID-Number": "1000",
                "Caller-Destination-Number": "2000",
                "Channel-State": "EXECUTE",
                "Channel-Call-State": "ACTIVE",
                "Channel-Answer-State": "answered",
                "Channel-Name": "sofia/sipinterface_1/1000@acme.sip.example.com",
                "From": "1000@acme.sip.example.com",
                "To": "2000@acme.sip.example.com",
                "Request": "2000@acme.sip.example.com",
                "Media-Server": host,
                "Switch-Hostname": host,
                "Switch-Nodename": node,
                "Switch-URI": "sip:10.20.30.40:11000",
                "Switch-URL": "sip:mod_sofia@10.20.30.40:11000",
                "Custom-Channel-Vars": channel_variables(&self.options.account),
            }),
        );
        merge(&mut body, extra);
        let key = format!("call.{name}.{}", encode(call_id));
        self.publish("callevt", &key, &body, None).await
    }

    /// Answers whether a call is alive.
    pub(super) async fn status(&self, body: &[u8]) -> anyhow::Result<()> {
        let request: Object = serde_json::from_slice(body).unwrap_or_default();
        let call_id = text(&request, "Call-ID").unwrap_or_default();
        let over = self.ended.lock().is_ok_and(|ended| ended.contains(call_id));
        if over && request.get("Active-Only") == Some(&Value::Bool(true)) {
            return Ok(());
        }
        let (name, found) = match text(&request, "Event-Name") {
            Some("channel_status_req") if over => {
                let error = "no node found with channel";
                (
                    "channel_status_resp",
                    json!({"Status": "terminated", "Error-Msg": error}),
                )
            }
            Some("channel_status_req") => {
                let node = switch_of(call_id, self.options.switches);
                (
                    "channel_status_resp",
                    json!({"Status": "active", "Switch-Nodename": node}),
                )
            }
            Some("query_channels_req") if over => ("query_channels_resp", json!({"Channels": {}})),
            Some("query_channels_req") => (
                "query_channels_resp",
                json!({"Channels": {call_id: {"Answered": true}}}),
            ),
            _ => return Ok(()),
        };
        let mut reply = defaults("call_event", name, "ecallmgr", "5.0.0", ECALLMGR);
        merge(&mut reply, json!({"Msg-ID": request.get("Msg-ID"), "Call-ID": call_id}));
        merge(&mut reply, found);
        self.reply(&request, &reply).await
    }

    /// Runs one `send_http`.
    pub(super) async fn upload(&self, body: &[u8]) -> anyhow::Result<()> {
        let request: Object = serde_json::from_slice(body).unwrap_or_default();
        let argument = |key: &str| {
            let args = request.get("Args").and_then(Value::as_object);
            args.and_then(|args| text(args, key)).unwrap_or_default().to_owned()
        };
        let (url, path) = (argument("Url"), argument("File-Name"));
        let call = self.files.lock().ok().and_then(|files| files.get(&path).cloned());
        let outcome = match call {
            Some(call_id) => self.put(&url, &path, &call_id).await,
            None => {
                let error = "-ERR error opening file\n";
                json!({"Result": "error", "Error": error, "Event-Data": {"API-Error": error}})
            }
        };
        let mut reply = defaults("switch_event", "reply", "ecallmgr", "5.0.0", ECALLMGR);
        let told = json!({
            "Msg-ID": request.get("Msg-ID"),
            "Command": request.get("Command"),
            "FreeSWITCH-Node": request.get("FreeSWITCH-Node"),
        });
        merge(&mut reply, told);
        merge(&mut reply, outcome);
        self.reply(&request, &reply).await
    }

    /// Uploads the file, and returns what ecallmgr says of it.
    async fn put(&self, url: &str, path: &str, call_id: &str) -> Value {
        let file = &self.options.file;
        let put = Put {
            url,
            file: &file.path,
            total: file.bytes,
            content_type: "audio/wav",
            bandwidth: None,
            fault: UploadFault::None,
        };
        let status = http_put::put(&put, |_| {}).await.map_or(0, |answer| answer.status);
        if status == 200 {
            self.is_stored(path, call_id);
            return json!({"Result": "success", "Response": {"API-Output": format!("{path} saved to {url}")}});
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        let error = format!("Received HTTP error {status} trying to save {path} to {url}");
        let data = json!({"API-Error": error, "API-HTTP-Error": status.to_string()});
        json!({"Result": "error", "Error": format!("-ERR {error}"), "Event-Data": data})
    }

    /// The switch deletes its file.
    fn is_stored(&self, path: &str, call_id: &str) {
        if let Ok(mut files) = self.files.lock() {
            files.remove(path);
        }
        let waiting = self.waiting.lock().ok().and_then(|mut waiting| waiting.remove(call_id));
        if let Some(done) = waiting {
            let _ = done.send(());
        }
        self.stored.fetch_add(1, Ordering::Relaxed);
    }

    async fn reply(&self, request: &Object, body: &Object) -> anyhow::Result<()> {
        let Some(server) = text(request, "Server-ID") else {
            return Ok(());
        };
        let (to, queue) = split_address(server);
        self.publish("targeted", queue, body, to).await
    }

    async fn publish(&self, exchange: &str, key: &str, body: &Object, to: Option<&str>) -> anyhow::Result<()> {
        let mut properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_timestamp(Clock::default().gregorian_micros());
        if let Some(to) = to {
            let mut headers = FieldTable::default();
            headers.insert("Deliver-To-PID".into(), AMQPValue::LongString(to.into()));
            properties = properties.with_headers(headers);
        }
        let (body, options) = (serde_json::to_vec(body)?, BasicPublishOptions::default());
        self.channel
            .basic_publish(exchange.into(), key.into(), options, &body, properties)
            .await?;
        Ok(())
    }
}
