// A VM's screen and serial line. Every connection costs a token: the page's access token is exchanged for one, and for
// the next access token, which is kept for this tab only, so that a reload or a broken connection needs no new link.

import RFB from "./vendor/novnc/core/rfb.js";
import { Terminal } from "./vendor/xterm/xterm.mjs";

const KEPT = "caelum.console.access";
const XK_RETURN = 0xff0d;
const XK_TAB = 0xff09;
const $ = (id) => document.getElementById(id);
const address = new URL(location.href);

let access = address.searchParams.get("token") || sessionStorage.getItem(KEPT);
let exchanging = Promise.resolve();
let shown = "vnc";

class Refused extends Error {}

// One exchange at a time: the next needs the access token that the last one brought.
function tokenFor(line) {
  const mine = exchanging.then(() => exchange(line));
  exchanging = mine.catch(() => undefined);
  return mine;
}

async function exchange(line) {
  if (!access) throw new Refused("This link has no token. Request console access again.");
  const answer = await fetch("tokens", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ token: access, line }),
  });
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) {
    const error = body.error || {};
    throw new Refused([error.details || `HTTP ${answer.status}`, error.elaboration].filter(Boolean).join(". "));
  }
  access = body.next;
  sessionStorage.setItem(KEPT, access);
  $("name").textContent = document.title = body.vm.name;
  return body.token;
}

async function urlOf(line) {
  const url = new URL(line, address);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  url.search = "?token=" + encodeURIComponent(await tokenFor(line));
  return url.href;
}

// --- the two consoles: each has connect(), close(), type(text), focus() and says how it is ---------------------------

class Line {
  constructor(name) {
    this.name = name;
    this.text = "Not connected";
    this.good = false;
    this.opened = false;
    this.attempt = 0;
  }

  say(text, good = false) {
    this.text = text;
    this.good = good;
    if (shown === this.name) showStatus(this);
  }

  async connect() {
    this.close();
    this.opened = true;
    const attempt = ++this.attempt;
    this.say("Connecting…");
    try {
      const url = await urlOf(this.name);
      if (attempt === this.attempt) this.open(url, () => attempt === this.attempt);
    } catch (error) {
      this.say(error instanceof Refused ? error.message : "The console proxy cannot be reached.");
    }
  }
}

class Screen extends Line {
  open(url, current) {
    const rfb = (this.rfb = new RFB($("vnc"), url, { wsProtocols: ["binary"] }));
    rfb.scaleViewport = true;
    rfb.focusOnClick = true;
    rfb.addEventListener("connect", () => current() && (this.say("Connected", true), this.focus()));
    rfb.addEventListener("disconnect", () => current() && this.say("The connection ended."));
    rfb.addEventListener("securityfailure", (event) => current() && this.say(event.detail.reason || "Refused"));
    rfb.addEventListener("credentialsrequired", async () => {
      const password = await ask("Console password of the VM", true);
      if (password === null) rfb.disconnect();
      else rfb.sendCredentials({ password });
    });
  }

  close() {
    this.attempt += 1;
    this.rfb?.disconnect();
    this.rfb = null;
  }

  type(text) {
    for (const character of text) {
      const code = character.codePointAt(0);
      const special = { "\n": XK_RETURN, "\t": XK_TAB }[character];
      this.rfb?.sendKey(special ?? (code < 0x100 ? code : 0x01000000 | code), null);
    }
  }

  focus() {
    this.rfb?.focus();
  }
}

class Serial extends Line {
  open(url, current) {
    this.makeTerminal();
    this.terminal.reset();
    const socket = (this.socket = new WebSocket(url, ["binary"]));
    socket.binaryType = "arraybuffer";
    socket.onopen = () => current() && (this.say("Connected", true), this.focus());
    socket.onmessage = (event) => current() && this.terminal.write(new Uint8Array(event.data));
    socket.onclose = (event) => current() && this.say(event.reason || "The connection ended.");
  }

  makeTerminal() {
    if (this.terminal) return;
    this.terminal = new Terminal({ cursorBlink: true, scrollback: 5000, fontSize: 15 });
    this.terminal.open($("serial"));
    this.terminal.onData((text) => this.send(new TextEncoder().encode(text)));
    this.terminal.onBinary((text) => this.send(Uint8Array.from(text, (one) => one.charCodeAt(0))));
  }

  send(bytes) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(bytes);
  }

  close() {
    this.attempt += 1;
    this.socket?.close();
    this.socket = null;
  }

  type(text) {
    this.send(new TextEncoder().encode(text.replaceAll("\n", "\r")));
  }

  focus() {
    this.terminal?.focus();
  }
}

const lines = { vnc: new Screen("vnc"), serial: new Serial("serial") };

// --- the page ---------------------------------------------------------------------------------------------------------

function showStatus(line) {
  $("status").textContent = line.text;
  $("status").className = line.good ? "good" : line.text.endsWith("…") ? "" : "bad";
  $("keys").disabled = !line.good || line.name !== "vnc";
  $("type").disabled = !line.good;
}

function show(name) {
  shown = name;
  for (const one of Object.keys(lines)) {
    $(one).hidden = one !== name;
    $(`tab-${one}`).setAttribute("aria-selected", String(one === name));
  }
  showStatus(lines[name]);
  if (lines[name].opened) lines[name].focus();
  else lines[name].connect();
}

function ask(question, secret) {
  const dialog = $("ask");
  $("question").textContent = question;
  $("answer").hidden = !secret;
  $("text").hidden = secret;
  $("answer").value = $("text").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const value = () => (secret ? $("answer").value : $("text").value);
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok" ? value() : null), { once: true });
  });
}

$("ask").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target === $("answer")) {
    event.preventDefault();
    $("ask").close("ok");
  }
});
for (const name of Object.keys(lines)) $(`tab-${name}`).addEventListener("click", () => show(name));
$("again").addEventListener("click", () => lines[shown].connect());
$("keys").addEventListener("click", () => (lines.vnc.rfb?.sendCtrlAltDel(), lines.vnc.focus()));
$("full").addEventListener("click", () => $(shown).requestFullscreen?.());
$("type").addEventListener("click", async () => {
  const text = await ask("Text to type into the guest", false);
  if (text) lines[shown].type(text);
  lines[shown].focus();
});

const first = address.searchParams.get("line") === "serial" ? "serial" : "vnc";
address.search = "";
history.replaceState(null, "", address); // the token must not stay in the address bar and the history
show(first);
