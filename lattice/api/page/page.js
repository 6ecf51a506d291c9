// The status page: asks the node every two seconds and shows the answer. Whatever comes from the
// node or its peers is set as text, never as HTML.
"use strict";

const API = "/api/lattice";
const EVERY_MS = 2000;
const PATIENCE_MS = 5000;
const TOKEN = "lattice-token";
const SYNCED_SHOWN = 6;
const KEYS_SHOWN = 4;
const OLD_OK_S = 15; // a lung that worked longer ago than this is not called ok without saying when
// What a status must have before any of it is shown: half an answer would be two answers mixed.
const SHAPES = {
  status: { headline: "string", name: "string", peer_id: "string", version: "string", sync_mode: "string", policy: "string", reason: "string", resilient: "boolean", enabled: "boolean", started: "boolean", http_sync_enabled: "boolean", heartbeat_active: "boolean", merkle_root: "string", log_root: "string", peer_count: "number", entry_count: "number", state_size: "number", forks: "number", uptime_s: "number", peers: "array", synced: "array", bridged_over_http: "array", alarms: "array", warnings: "array" },
  peer: { id: "string", name: "string", state: "string", p2p: "object", http: "object", heads_equal: "boolean", polled: "boolean" },
  synced: { peer: "string", at: "string" },
  fork: { author: "string", epoch: "string", frozen: "number", removed: "number", keys: "array", at: "string" },
};
const at = (id) => document.getElementById(id);
let lastAnswerMs = null;
let asking = null; // why the token form is shown: to "read" or to "change", or null
let timer = null;
let rounds = 0;

function show(id, text) {
  // Unchanged text is left alone, so that a live region speaks only when something changed.
  if (at(id).textContent !== text) at(id).textContent = text;
}

function tone(id, value) { at(id).dataset.tone = value; }

function made(name, text, toneValue = "", className = "") {
  const element = document.createElement(name);
  element.textContent = text;
  element.className = className;
  element.dataset.tone = toneValue;
  return element;
}

function showItems(id, items) {
  const [now, next] = [[...at(id).children], items].map((list) => list.map((item) => item.textContent).join("\n"));
  if (now !== next) at(id).replaceChildren(...items);
}

async function call(path, method = "GET") {
  const token = sessionStorage.getItem(TOKEN);
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const response = await fetch(API + path, { method, headers, cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
  const text = await response.text();
  let body = null;
  try { body = JSON.parse(text); } catch { body = null; }
  return { status: response.status, body, token };
}

function reasonOf({ status, body }) {
  const text = body && (body.detail || body.message || body.title);
  return text ? String(text) : `It answered ${status} without a reason.`;
}

function kindOf(value) { return value === null ? "null" : Array.isArray(value) ? "array" : typeof value; }

function check(what, value) {
  if (kindOf(value) !== "object") throw new TypeError(`${what} is no object`);
  for (const [name, kind] of Object.entries(SHAPES[what])) {
    if (kindOf(value[name]) !== kind) throw new TypeError(`${what}.${name} is no ${kind}`);
  }
}

function span(seconds) {
  const s = Math.floor(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

function count(n, one, many) { return `${n} ${n === 1 ? one : many}`; }

function moment(text) {
  const [day, time] = text.replace(/(\.\d+)?Z$/, "").split("T");
  return `${day === new Date().toISOString().slice(0, 10) ? "" : `${day} `}${time} UTC`;
}

function lung(one) {
  if (!one.reachable) return one.last_error || "-";
  return one.last_ok_s > OLD_OK_S ? `ok ${span(one.last_ok_s)} ago` : "ok";
}

function short(id) { return id.length > 16 ? `${id.slice(0, 6)}…${id.slice(-6)}` : id; }

function shortId(whole) {
  const id = made("code", short(whole));
  id.title = whole;
  // Whoever copies the short form gets the whole one.
  id.addEventListener("copy", (event) => {
    event.clipboardData.setData("text/plain", whole);
    event.preventDefault();
  });
  return id;
}

function peerRow(peer) {
  const row = document.createElement("tr");
  const identity = made("td", "");
  identity.append(shortId(peer.id));
  row.append(
    made("td", peer.name || "-", "", "text"),
    made("td", peer.state, { alive: "good", suspect: "warn" }[peer.state] || "bad"),
    made("td", lung(peer.p2p), "", "text"),
    made("td", lung(peer.http), "", "text"),
    made("td", typeof peer.last_heard_s === "number" ? `${span(peer.last_heard_s)} ago` : "never"),
    made("td", peer.heads_equal ? "equal" : "differ"),
    made("td", peer.polled ? "yes" : "no"),
    identity,
  );
  return row;
}

function fillPeers(peers) {
  at("no-peers").hidden = peers.length > 0;
  at("peers-frame").hidden = peers.length === 0;
  // Rows are not replaced under a selection, so that an id can be copied.
  const chosen = getSelection();
  if (chosen.isCollapsed || !at("peers").contains(chosen.anchorNode)) at("peers").replaceChildren(...peers.map(peerRow));
}

function fillNotices(status) {
  showItems("notices", [["Alarm", "bad", status.alarms], ["Warning", "warn", status.warnings]].flatMap(([word, kind, texts]) =>
    texts.map((text) => made("li", `${word}: ${text}`, kind))));
}

function fillForks(number) {
  show("forks", number === 0 ? "none" : `Alarm: ${count(number, "log is frozen", "logs are frozen")}`);
  tone("forks", number === 0 ? "" : "bad");
  if (number === 0) at("fork-list").hidden = true;
}

function p2pText(s) {
  if (!s.enabled) return "off (LATTICE_P2P_ENABLED=false)";
  if (!s.started) return `down: ${s.error || "not started yet"}`;
  return `up, ${count(s.peer_count, "peer", "peers")} heard`;
}

function syncedText(s) {
  const names = new Map(s.peers.map((peer) => [peer.id, peer.name]));
  const lines = s.synced.slice(0, SYNCED_SHOWN).map((one) => `${names.get(one.peer) || short(one.peer)} at ${moment(one.at)}`);
  if (s.synced.length > SYNCED_SHOWN) lines.push(`and ${s.synced.length - SYNCED_SHOWN} more`);
  return lines.join("\n") || "nobody yet";
}

function fill(s) {
  check("status", s);
  for (const peer of s.peers) check("peer", peer);
  for (const one of s.synced) check("synced", one);
  show("headline", s.headline);
  tone("headline", s.resilient ? "good" : s.sync_mode === "ISOLATED" && s.reason !== "alone" ? "bad" : "warn");
  document.title = `${s.name || "Lattice"} · ${s.sync_mode}`;
  show("name", s.name || "Lattice node");
  show("peer-id", s.peer_id);
  show("mode", s.sync_mode);
  show("policy", s.reason === `policy ${s.policy}` ? s.policy : `${s.policy} (${s.reason})`);
  show("p2p", p2pText(s));
  show("http", s.http_sync_enabled ? `polling, ${s.bridged_over_http.length} bridged` : "idle");
  const counting = typeof s.fallback_in_s === "number";
  show("fallback", counting ? `in ${Math.ceil(s.fallback_in_s)} s` : "no countdown");
  tone("fallback", counting ? "warn" : "");
  show("heartbeat", s.heartbeat_active ? "active" : "not active");
  show("size", `${count(s.entry_count, "entry", "entries")}, ${count(s.state_size, "key", "keys")}`);
  show("state-root", s.merkle_root);
  show("log-root", s.log_root);
  show("synced", syncedText(s));
  show("about", `Lattice ${s.version}, up for ${span(s.uptime_s)}.`);
  fillForks(s.forks);
  fillPeers(s.peers);
  fillNotices(s);
  for (const button of at("switch").children) button.setAttribute("aria-pressed", String(button.dataset.policy === s.policy));
}

function askToken(why, reason) {
  asking = why;
  at("token-form").hidden = false;
  show("token-answer", reason);
  at("token").setAttribute("aria-invalid", String(reason !== ""));
}

function endAsking() {
  asking = null;
  at("token-form").hidden = true;
}

function lost(headline, reason) {
  const since = lastAnswerMs === null ? "" : ` What stands below is from ${span((Date.now() - lastAnswerMs) / 1000)} ago.`;
  show("headline", headline);
  tone("headline", "bad");
  document.title = `${headline} · Lattice`;
  show("contact", `${reason}${since} This page goes on asking.`);
  at("main").classList.add("stale");
  for (const button of at("switch").children) button.disabled = true;
}

function refusedReading(token) {
  at("main").hidden = true;
  show("headline", "This node shows its status to operators only");
  tone("headline", "warn");
  document.title = "Token needed · Lattice";
  show("contact", "");
  // Without a token of ours the reason is known: the sentence above says it.
  const before = asking === null ? "" : at("token-answer").textContent;
  askToken(asking || "read", token ? "This is not the token of this node." : before);
  at("token").focus();
}

function understood(found) {
  try {
    fill(found.body);
  } catch (error) {
    // Another program may have taken the port, or a node of another version: that must not end the asking.
    lost("The last answer could not be read", `Something answers, but not with a status that this page knows (${error.message}).`);
    return;
  }
  lastAnswerMs = Date.now();
  at("main").hidden = false;
  at("main").classList.remove("stale");
  for (const button of at("switch").children) button.disabled = false;
  show("contact", "");
  if (found.token || asking === "read") endAsking();
}

async function refresh() {
  clearTimeout(timer);
  const round = ++rounds;
  let found = null;
  try { found = await call("/p2p/status"); } catch { found = null; }
  if (round !== rounds) return; // a later round has begun and will show what is newer
  if (found === null) lost("The node does not answer", "It may be down, restarting or out of reach.");
  else if (found.status === 401) {
    refusedReading(found.token);
    if (!found.token) return; // the token form goes on from here
    sessionStorage.removeItem(TOKEN);
    refresh(); // what everybody may read is shown without it
    return;
  }
  else if (found.status !== 200) lost("The node gives no status", reasonOf(found));
  else understood(found);
  timer = setTimeout(refresh, EVERY_MS);
}

function needsToken(found) {
  if (found.status !== 401) return false;
  askToken("change", "");
  at("token").focus();
  return true;
}

at("switch").addEventListener("click", async (event) => {
  const policy = event.target.dataset.policy;
  if (!policy) return;
  tone("answer", "");
  show("answer", `Switching to ${policy}`);
  try {
    const found = await call(`/sync/switch?mode=${encodeURIComponent(policy)}`, "POST");
    const well = found.status === 200 && found.body !== null && found.body.success === true;
    tone("answer", well ? "" : "bad");
    if (needsToken(found)) show("answer", "Not switched: only operators may. Enter the token above, then switch again.");
    else show("answer", well ? String(found.body.message) : `Not switched: ${reasonOf(found)}`);
  } catch {
    tone("answer", "bad");
    show("answer", "The node did not answer: whether it switched shows above once it does.");
  }
  refresh();
});

function forkItem(fork) {
  check("fork", fork);
  const more = fork.keys.length - KEYS_SHOWN;
  const keys = fork.keys.slice(0, KEYS_SHOWN).join(", ") + (more > 0 ? ` and ${more} more` : "");
  const item = made("li", "", "bad");
  item.append(shortId(fork.author), ` epoch ${fork.epoch} is frozen at seq ${fork.frozen} since ${moment(fork.at)}; ${count(fork.removed, "entry", "entries")} left the state.${keys ? ` Changed keys: ${keys}.` : ""}`);
  return item;
}

at("forks").addEventListener("click", async (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  // A link carries no token: the list is fetched with it and shown here.
  event.preventDefault();
  let items = [];
  try {
    const found = await call("/forks");
    if (needsToken(found)) items = [made("li", "Only operators may read it. Enter the token above.", "warn")];
    else if (found.status !== 200) items = [made("li", `Not read: ${reasonOf(found)}`, "bad")];
    else {
      items = found.body.forks.map(forkItem);
      if (found.body.next) items.push(made("li", "These are the first; `lattice forks` lists all.", "warn"));
    }
    if (items.length === 0) items = [made("li", "No log is forked.")];
  } catch {
    items = [made("li", "The list could not be read.", "bad")];
  }
  at("fork-list").replaceChildren(...items);
  at("fork-list").hidden = false;
});

at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, at("token").value.trim());
  at("token").value = "";
  show("token-answer", "");
  show("answer", "");
  refresh();
});

// A hidden tab is asked to wait by the browser: whoever looks at it again wants the present.
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible" && asking !== "read") refresh();
});

refresh();
