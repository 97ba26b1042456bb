// The admin page: asks the public API once a second, shows what it says, sends what the buttons say. Keeps no state of the
// server's: whatever is on the screen came with the last answers. Paths are relative, so it also works behind a prefix.

const POLL_MS = 1000;
const KEPT = 300; // polls in a plot: five minutes
const LOG_EVERY = 3; // polls

const $ = (id) => document.getElementById(id);
const STATE_NAMES = {
  unloaded: "Unloaded", asked: "Waiting for its turn", staging: "Staging", loading: "Loading",
  available: "Available", draining: "Draining", failed: "Failed",
};

const PHASES = { staging: "Reading the checkpoint", weights: "Weights", compile: "Compiling", graphs: "Graphs", "warm-up": "Warming up" };

// --- the API

function headers(keyName, json = false) {
  const key = sessionStorage.getItem(keyName);
  return { ...(json && { "content-type": "application/json" }), ...(key && { authorization: `Bearer ${key}` }) };
}

async function failure(response) {
  const text = await response.text();
  try {
    const { error } = JSON.parse(text);
    return error.message ?? error;
  } catch {
    return text || `${response.status} ${response.statusText}`;
  }
}

async function steer(model, action) {
  const path = `models/${model.split("/").map(encodeURIComponent).join("/")}/${action}`;
  const response = await fetch(path, { method: "POST", headers: headers("admin-key", true), body: "{}" });
  if (response.ok) {
    if (action === "activate") asked.add(model);
    else asked.delete(model);
    showProblem("");
    return;
  }
  showProblem(`${action} ${model}: ${await failure(response)}`);
  if (response.status === 403) $("admin-key").focus();
}

// --- the models

const cards = new Map();
const asked = new Set(); // activated here, and not begun yet: the running model gets its time first

function card(id) {
  const item = document.createElement("li");
  item.className = "model";
  item.innerHTML = `
    <div class="model-head"><h3 tabindex="-1"></h3><p class="badge"></p></div>
    <p class="hint about"></p>
    <div class="loading" hidden><progress max="1"></progress><p class="hint"></p></div>
    <p class="model-error" hidden></p>
    <p class="row"><button type="button" class="primary activate">Activate</button>
      <button type="button" class="unload">Unload</button><button type="button" class="cancel">Cancel</button></p>`;
  const part = (selector) => item.querySelector(selector);
  part("h3").textContent = id;
  part("progress").setAttribute("aria-label", `Loading ${id}`);
  for (const [name, action] of [["activate", "activate"], ["unload", "unload"], ["cancel", "unload"]]) {
    const button = part(`.${name}`);
    button.setAttribute("aria-label", `${button.textContent} ${id}`);
    button.addEventListener("click", async () => {
      try {
        await steer(id, action);
        await poll();
      } catch (error) {
        showProblem(`${action} ${id}: ${error.message}`);
      }
    });
  }
  $("models").append(item);
  return { item, part, state: null };
}

// Bring a model's card up to date; what to tell a screen reader, "" for nothing.
function showModel(entry, entries) {
  if (!cards.has(entry.id)) cards.set(entry.id, card(entry.id));
  const shown = cards.get(entry.id);
  const { part } = shown;
  if (!["unloaded", "available", "draining"].includes(entry.state) || (entry.state === "available" && entry.active)) {
    asked.delete(entry.id);
  }
  const state = asked.has(entry.id) ? "asked" : entry.state;
  const coming = ["asked", "staging", "loading"].includes(state);
  shown.item.classList.toggle("active", entry.active && entry.state === "available");
  part(".badge").textContent = STATE_NAMES[state] ?? state;
  part(".badge").dataset.state = state;
  part(".about").textContent = about(entry);
  part(".model-error").textContent = entry.error ?? "";
  part(".model-error").hidden = !entry.error;
  showProgress(part, entry, coming, entries);
  showButtons(part, { activate: ["unloaded", "failed"].includes(state) || (state === "available" && !entry.active),
    unload: state === "available", cancel: coming });
  const changed = shown.state !== null && shown.state !== state;
  shown.state = state;
  return changed ? `${entry.id}: ${STATE_NAMES[state]}` : "";
}

function about(entry) {
  const facts = entry.active && entry.state === "available" ? ["active", entry.family] : [entry.family];
  if (entry.memory_bytes) facts.push(`${bytes(entry.memory_bytes)} of memory`);
  if (entry.slots) facts.push(`${entry.slots} slots`);
  for (const name of ["running", "waiting", "parked"]) if (entry[name]) facts.push(`${entry[name]} ${name}`);
  return facts.join(" · ");
}

function showProgress(part, entry, coming, entries) {
  part(".loading").hidden = !coming;
  if (!coming) return;
  const leaving = entry.state === "staging" && entries.find((each) => each.state === "draining");
  const progress = leaving ? null : entry.progress;
  const bar = part("progress");
  if (progress) bar.value = progress.fraction;
  else bar.removeAttribute("value");
  part(".loading p").textContent = leaving ? `Staged; ${leaving.id} ends its answers first` : howFar(entry.state, progress);
}

function howFar(state, progress) {
  if (!progress) return { staging: "Starting its worker", loading: "Beginning to load" }[state] ?? "";
  const percent = `${PHASES[progress.phase] ?? progress.phase}, ${Math.floor(progress.fraction * 100)} %`;
  return progress.eta_s == null || progress.fraction === 1 ? percent : `${percent}, about ${seconds(progress.eta_s)} left`;
}

function showButtons(part, wanted) {
  const focused = document.activeElement;
  for (const [name, visible] of Object.entries(wanted)) part(`.${name}`).hidden = !visible;
  if (!focused?.hidden) return;
  const left = Object.keys(wanted).map((name) => part(`.${name}`)).find((button) => !button.hidden);
  (left ?? part("h3")).focus(); // never lost: a model that drains has no button for a while
}

function bytes(count) {
  const gib = count / 2 ** 30;
  return gib >= 1 ? `${gib.toFixed(1)} GiB` : `${Math.max(1, Math.round(count / 2 ** 20))} MiB`;
}

const seconds = (count) => (count < 90 ? `${Math.ceil(count)} s` : `${Math.round(count / 60)} min`);

// --- the load

const plots = [];

class Plot {
  // A curve of the last KEPT polls; null where there was nothing to measure.
  constructor(title, unit) {
    this.title = title;
    this.unit = unit;
    this.values = [];
    this.figure = document.createElement("figure");
    this.figure.innerHTML = `<figcaption><span></span><strong>–</strong></figcaption>
      <div class="area"><span class="top" aria-hidden="true"></span>
        <svg viewBox="0 0 ${KEPT - 1} 100" preserveAspectRatio="none" role="img">
          <path class="axis" d="M0 0H${KEPT - 1}M0 50H${KEPT - 1}M0 100H${KEPT - 1}"/><path class="curve"/><path class="dots"/></svg></div>
      <div class="scale" aria-hidden="true"><span>5 min ago</span><span>now</span></div>`;
    this.figure.querySelector("figcaption span").textContent = title;
    $("plots").append(this.figure);
  }

  add(value) {
    this.values.push(value);
    if (this.values.length > KEPT) this.values.shift();
    const known = this.values.filter((each) => each !== null);
    const top = known.length ? niceAbove(Math.max(...known)) : 1;
    const first = KEPT - this.values.length;
    const has = (index) => (this.values[index] ?? null) !== null;
    let [curve, dots] = ["", ""];
    this.values.forEach((each, index) => {
      if (each === null) return;
      const point = `${first + index} ${(100 - (100 * each) / top).toFixed(1)}`;
      if (has(index - 1)) curve += `L${point}`;
      else if (has(index + 1)) curve += `M${point}`;
      else dots += `M${point}h0.01`; // alone: a line of no length, drawn as a dot by its round caps
    });
    this.figure.querySelector(".curve").setAttribute("d", curve);
    this.figure.querySelector(".dots").setAttribute("d", dots);
    const last = known.at(-1);
    const now = last === undefined ? "–" : `${short(last)} ${this.unit}`.trim();
    this.figure.querySelector("strong").textContent = now;
    this.figure.querySelector(".top").textContent = known.length ? `${short(top)} ${this.unit}`.trim() : "";
    this.figure.querySelector("svg").setAttribute("aria-label",
      known.length ? `${this.title}: last ${now}, highest of five minutes ${short(Math.max(...known))} ${this.unit}`.trim()
        : `${this.title}: nothing yet`);
  }
}

function niceAbove(value) {
  const step = 10 ** Math.floor(Math.log10(value || 1));
  return [1, 2, 5, 10].map((factor) => factor * step).find((candidate) => candidate >= value);
}

const short = (value) => (value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2)).replace(/\.0+$/, "");

// Prometheus' text: name{labels} value; the labels stay part of the name.
function samples(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const end = line.lastIndexOf(" ");
    if (end > 0 && line[0] !== "#") found.set(line.slice(0, end), Number(line.slice(end + 1)));
  }
  return found;
}

let before = null;

function showLoad(metrics, entries) {
  const at = performance.now();
  const value = (name) => metrics.get(name) ?? 0;
  const sum = (key) => entries.reduce((total, entry) => total + entry[key], 0);
  const slots = entries.filter((entry) => entry.state === "available").reduce((total, entry) => total + (entry.slots ?? 0), 0);
  $("slots").textContent = slots ? `${sum("running")} of ${slots}` : sum("running");
  $("waiting").textContent = sum("waiting");
  $("parked").textContent = sum("parked");
  $("done").textContent = value("tgi_request_success");
  if (before) {
    const grown = (name) => value(name) - (before.metrics.get(name) ?? 0);
    const mean = (name, labels = "") => {
      const count = grown(`${name}_count${labels}`);
      return count > 0 ? (1000 * grown(`${name}_sum${labels}`)) / count : null;
    };
    plots[0].add((1000 * grown("neuronx_serve_generated_tokens_total")) / (at - before.at));
    plots[1].add(mean("tgi_batch_forward_duration", '{method="decode"}'));
    plots[2].add(mean("neuronx_serve_time_to_first_token_seconds"));
  } else {
    plots.push(new Plot("Tokens per second", ""), new Plot("Decode step", "ms"), new Plot("Time to first token", "ms"));
  }
  before = { at, metrics };
}

// --- the device: what neuron-monitor and the last loads told, nothing where they told nothing

function labelled(metrics, name) {
  const found = [];
  for (const [series, value] of metrics) {
    if (series !== name && !series.startsWith(`${name}{`)) continue;
    const labels = {};
    for (const [, key, text] of series.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) labels[key] = text.replace(/\\(.)/g, "$1");
    found.push({ labels, value });
  }
  return found;
}

function deviceFigures(metrics) {
  const all = (name) => labelled(metrics, `neuronx_serve_${name}`);
  const one = (name) => all(name)[0]?.value;
  const total = (samples) => samples.reduce((sum, { value }) => sum + value, 0);
  const figures = all("neuroncore_utilization_ratio").map(({ labels, value }) => [`Core ${labels.core} busy`, `${Math.round(100 * value)} %`]);
  const [used, size] = [one("neuron_device_memory_used_bytes"), one("neuron_device_memory_size_bytes")];
  if (used !== undefined) figures.push(["Device memory", bytes(used) + (size ? ` of ${bytes(size)}` : "")]);
  const byKind = new Map();
  for (const { labels, value } of all("neuroncore_memory_bytes")) byKind.set(labels.kind, (byKind.get(labels.kind) ?? 0) + value);
  for (const [kind, value] of byKind) if (value) figures.push([`of it ${kind.replaceAll("_", " ")}`, bytes(value)]);
  const errors = all("neuron_execution_errors_total");
  if (errors.length) figures.push(["Execution errors", total(errors)]);
  const ecc = all("neuron_ecc_events_total");
  const corrected = ecc.filter(({ labels }) => labels.kind.endsWith("_corrected"));
  if (ecc.length) figures.push(["Memory errors corrected", total(corrected)], ["not corrected", total(ecc) - total(corrected)]);
  if (one("neuron_monitor_up") === 0) figures.push(["neuron-monitor", "no report"]);
  const floors = new Map(all("decode_floor_seconds").map(({ labels, value }) => [`${labels.model} ${labels.bucket}`, value]));
  for (const { labels, value } of all("decode_step_seconds")) {
    const floor = floors.get(`${labels.model} ${labels.bucket}`);
    const beside = floor === undefined ? "" : `, floor ${short(1000 * floor)} ms`;
    figures.push([`Decode step of ${labels.model} to ${labels.bucket} positions`, `${short(1000 * value)} ms${beside}`]);
  }
  return figures;
}

function showDevice(metrics) {
  const figures = deviceFigures(metrics);
  $("device").hidden = !figures.length;
  const list = $("device-figures");
  while (list.children.length > figures.length) list.lastChild.remove();
  figures.forEach(([name, text], index) => {
    const item = list.children[index] ?? list.appendChild(document.createElement("div"));
    if (!item.children.length) item.append(document.createElement("dt"), document.createElement("dd"));
    item.children[0].textContent = name;
    item.children[1].textContent = text;
  });
}

// --- the prompt

let asking = null;

async function ask(event) {
  event.preventDefault();
  if (asking) return;
  asking = new AbortController();
  $("send").disabled = true;
  $("stop").disabled = false;
  $("answer").textContent = "";
  $("answer-note").textContent = "Waiting for the first token";
  try {
    $("answer-note").textContent = await stream($("prompt").value, asking.signal);
  } catch (error) {
    $("answer-note").textContent = error.name === "AbortError" ? "Stopped" : `Failed: ${error.message}`;
  }
  asking = null;
  $("send").disabled = false;
  $("stop").disabled = true;
}

async function stream(prompt, signal) {
  const body = JSON.stringify({ messages: [{ role: "user", content: prompt }], stream: true });
  const began = performance.now();
  const response = await fetch("v1/chat/completions", { method: "POST", headers: headers("api-key", true), body, signal });
  if (!response.ok) throw new Error(response.status === 401 ? "the server asks for its API key" : await failure(response));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let [rest, tokens, first, finish] = ["", 0, null, null];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: {")) continue; // a comment, an empty line or [DONE]
      const { error, choices } = JSON.parse(line.slice(6));
      if (error) throw new Error(error.message);
      if (!choices.length) continue;
      first ??= performance.now();
      tokens += 1;
      finish = choices[0].finish_reason ?? finish;
      const bottom = $("answer").scrollHeight - $("answer").scrollTop - $("answer").clientHeight < 30;
      $("answer").append(choices[0].delta.content ?? "");
      if (bottom) $("answer").scrollTop = $("answer").scrollHeight;
      if (tokens === 1) $("answer-note").textContent = "Answering";
    }
  }
  const ms = first === null ? 0 : Math.round(first - began);
  const rate = tokens > 1 ? `, ${short((1000 * (tokens - 1)) / (performance.now() - first))} tokens per second` : "";
  return `${tokens} tokens${finish === "length" ? ", cut at the end of the context" : ""}, the first after ${ms} ms${rate}`;
}

// --- once a second

let polls = 0;
let offline = false;

function showProblem(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

function showHealth(entries) {
  const serving = entries.find((entry) => entry.active && entry.state === "available")
    ?? entries.find((entry) => entry.state === "available");
  const active = entries.find((entry) => entry.active) ?? entries[0];
  $("health").textContent = serving ? "Serving" : STATE_NAMES[active.state];
  $("health").dataset.state = serving ? "available" : active.state;
  $("active-model").textContent = `: ${active.id}`;
}

async function showLog() {
  const response = await fetch("admin/logs", { headers: headers("admin-key") });
  const log = $("log");
  const bottom = log.scrollHeight - log.scrollTop - log.clientHeight < 30;
  const text = response.ok ? (await response.json()).lines.join("\n") || "no lines yet" : await failure(response);
  if (log.textContent === text) return;
  log.textContent = text;
  if (bottom) log.scrollTop = log.scrollHeight;
}

async function poll() {
  const [models, metrics] = await Promise.all([fetch("models"), fetch("metrics")]);
  const entries = (await models.json()).data;
  const news = entries.map((entry) => showModel(entry, entries)).filter(Boolean);
  for (const [id, { item }] of cards) {
    if (entries.some((entry) => entry.id === id)) continue;
    item.remove(); // a reload has taken it away
    cards.delete(id);
  }
  if (news.length) $("announcement").textContent = news.join(", ");
  showHealth(entries);
  const series = samples(await metrics.text());
  showLoad(series, entries);
  showDevice(series);
  if (offline) showProblem("");
  offline = false;
}

async function tick() {
  if (!document.hidden) {
    try {
      await poll();
      if (polls++ % LOG_EVERY === 0) await showLog();
    } catch (error) {
      offline = true;
      $("health").textContent = "No answer";
      $("health").dataset.state = "failed";
      showProblem(`The server does not answer: ${error.message}`);
    }
  }
  setTimeout(tick, POLL_MS);
}

$("prompt-form").addEventListener("submit", ask);
$("stop").addEventListener("click", () => asking?.abort());
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("prompt-form").requestSubmit();
});
for (const name of ["admin-key", "api-key"]) $(name).value = sessionStorage.getItem(name) ?? "";
$("keys").addEventListener("submit", (event) => {
  event.preventDefault();
  for (const name of ["admin-key", "api-key"]) {
    if ($(name).value) sessionStorage.setItem(name, $(name).value);
    else sessionStorage.removeItem(name);
  }
  showProblem("");
  $("announcement").textContent = "Keys are in use";
  polls = 0; // the log at the next poll
});
tick();
