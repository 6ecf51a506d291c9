// The status page: asks the node every two seconds and shows the answer. Whatever comes from the
// node or its peers is set as text, never as HTML.
"use strict";

const API = "/api/lattice";
const EVERY_MS = 2000;
const PATIENCE_MS = 5000;
const TOKEN = "lattice-token";
const at = (id) => document.getElementById(id);
let lastAnswerMs = null;
let refused = false;
let timer = null;
let rounds = 0;

function show(id, text) {
  // Unchanged text is left alone, so that a live region speaks only when something changed.
  if (at(id).textContent !== text) at(id).textContent = text;
}

function tone(id, value) { at(id).dataset.tone = value; }

async function call(path, method = "GET") {
  const token = sessionStorage.getItem(TOKEN);
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const response = await fetch(API + path, { method, headers, cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
  let body = null;
  try { body = await response.json(); } catch { body = null; }
  return { status: response.status, body };
}

function reasonOf({ status, body }) {
  const text = body && (body.detail || body.message || body.title);
  return text ? String(text) : `The node answered ${status} without a reason.`;
}

function span(seconds) {
  const s = Math.floor(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}

function count(n, one, many) { return `${n} ${n === 1 ? one : many}`; }

function lung(one) { return one.reachable ? "ok" : one.last_error || "-"; }

function short(id) { return id.length > 16 ? `${id.slice(0, 6)}…${id.slice(-6)}` : id; }

function fillPeers(peers) {
  at("no-peers").hidden = peers.length > 0;
  at("peers-frame").hidden = peers.length === 0;
  const rows = peers.map((peer) => {
    const row = document.createElement("tr");
    const cell = (text, className = "") => {
      const made = document.createElement("td");
      made.textContent = text;
      made.className = className;
      row.append(made);
      return made;
    };
    cell(peer.name || "-", "text");
    const id = document.createElement("code");
    id.textContent = short(peer.id);
    id.title = peer.id;
    // Whoever copies the short form gets the whole one.
    id.addEventListener("copy", (event) => {
      event.clipboardData.setData("text/plain", peer.id);
      event.preventDefault();
    });
    cell("").append(id);
    cell(peer.state).dataset.tone = { alive: "good", suspect: "warn" }[peer.state] || "bad";
    cell(lung(peer.p2p), "text");
    cell(lung(peer.http), "text");
    cell(peer.last_heard_s === null ? "never" : `${span(peer.last_heard_s)} ago`);
    cell(peer.heads_equal ? "equal" : "differ");
    cell(peer.polled ? "yes" : "no");
    return row;
  });
  // Rows are not replaced under a selection, so that an id can be copied.
  const chosen = getSelection();
  if (chosen.isCollapsed || !at("peers").contains(chosen.anchorNode)) at("peers").replaceChildren(...rows);
}

function fillNotices(status) {
  const items = [["Alarm", "bad", status.alarms], ["Warning", "warn", status.warnings]].flatMap(([word, kind, texts]) =>
    texts.map((text) => {
      const item = document.createElement("li");
      item.dataset.tone = kind;
      item.textContent = `${word}: ${text}`;
      return item;
    }));
  at("notices").replaceChildren(...items);
}

function p2pText(s) {
  if (!s.enabled) return "off (LATTICE_P2P_ENABLED=false)";
  if (!s.started) return `down: ${s.error || "not started yet"}`;
  return `up, ${count(s.peer_count, "peer", "peers")} heard`;
}

function fill(s) {
  show("headline", s.headline);
  tone("headline", s.resilient ? "good" : s.sync_mode === "ISOLATED" && s.reason !== "alone" ? "bad" : "warn");
  document.title = `${s.name || "Lattice"} · ${s.sync_mode}`;
  show("name", s.name || "Lattice node");
  show("peer-id", s.peer_id);
  show("mode", s.sync_mode);
  show("policy", `${s.policy} (${s.reason})`);
  show("p2p", p2pText(s));
  show("http", s.http_sync_enabled ? `polling, ${s.bridged_over_http.length} bridged` : "idle");
  show("fallback", s.fallback_in_s === null ? "no countdown" : `in ${Math.ceil(s.fallback_in_s)} s`);
  tone("fallback", s.fallback_in_s === null ? "" : "warn");
  show("heartbeat", s.heartbeat_active ? "active" : "not active");
  show("size", `${count(s.entry_count, "entry", "entries")}, ${count(s.state_size, "key", "keys")}`);
  show("state-root", s.merkle_root);
  show("log-root", s.log_root);
  show("forks", s.forks === 0 ? "none" : `${count(s.forks, "log is", "logs are")} frozen: see /api/lattice/forks`);
  tone("forks", s.forks === 0 ? "" : "bad");
  const names = new Map(s.peers.map((peer) => [peer.id, peer.name]));
  show("synced", s.synced.map((one) => `${names.get(one.peer) || short(one.peer)} (${one.at})`).join(", ") || "nobody yet");
  fillPeers(s.peers);
  fillNotices(s);
  for (const button of at("switch").children) button.setAttribute("aria-pressed", String(button.dataset.policy === s.policy));
}

function askToken(reason) {
  refused = true;
  at("main").hidden = true;
  at("token-form").hidden = false;
  show("headline", "This node shows its status to operators only");
  tone("headline", "warn");
  show("contact", reason);
  tone("contact", "");
}

function lost(reason) {
  const since = lastAnswerMs === null ? "" : ` Last answer ${span((Date.now() - lastAnswerMs) / 1000)} ago; what stands below is from then.`;
  show("headline", "The node does not answer");
  tone("headline", "bad");
  show("contact", `${reason}${since} This page goes on asking.`);
  tone("contact", "bad");
  at("main").classList.add("stale");
  for (const button of at("switch").children) button.disabled = true;
}

async function refresh() {
  clearTimeout(timer);
  const round = ++rounds;
  let found = null;
  try { found = await call("/p2p/status"); } catch { found = null; }
  if (round !== rounds) return; // a later round has begun and will show what is newer
  if (found === null) lost("No answer from it.");
  else if (found.status === 401) askToken(reasonOf(found));
  else if (found.status !== 200 || found.body === null) lost(reasonOf(found));
  else {
    refused = false;
    at("token-form").hidden = true;
    try {
      fill(found.body);
      at("main").hidden = false;
      at("main").classList.remove("stale");
      for (const button of at("switch").children) button.disabled = false;
      lastAnswerMs = Date.now();
      show("contact", "");
    } catch {
      // Another program may have taken the port, or a node of another version: that must not end the asking.
      lost("Something answers there, and it is not a status that this page can read.");
    }
  }
  if (!refused) timer = setTimeout(refresh, EVERY_MS);
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
    show("answer", well ? found.body.message : `Not switched: ${reasonOf(found)}`);
  } catch {
    tone("answer", "bad");
    show("answer", "The node did not answer: whether it switched shows above once it does.");
  }
  refresh();
});

at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, at("token").value.trim());
  at("token").value = "";
  refresh();
});

refresh();
