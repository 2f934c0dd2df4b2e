// Puts the parts together: asks every two seconds while somebody looks.

import { element, make, rate, Refused } from "/ask.js";
import * as drawing from "/drawing.js";
import * as live from "/live.js";
import * as search from "/search.js";
import * as trace from "/trace.js";

const EVERY_MS = 2000;

// What goes wrong is said, and nothing else stops.
const attempt = (call) => async (...given) => {
  try {
    await call(...given);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    live.complain(error.message);
  }
};

const choose = attempt(async ({ kind, name }) => {
  await drawing.reveal(kind, name);
  pressed();
  const found = await search.findObjects(name);
  const it = found.find((it) => it.kind === kind && it.name === name);
  if (kind === "port") {
    element("trace-port").value = name;
    element("flows-text").value = `port=${name}`;
  } else if (kind === "network" || kind === "router") {
    element("flows-text").value = `${kind}=${name}`;
  }
  about(it ?? { kind, name });
  await flows();
});

function about(it) {
  element("about").hidden = false;
  element("about-title").textContent = `${it.kind} ${it.name}`;
  const facts = [];
  const fact = (name, value) => { if (value) facts.push(make("dt", { text: name }), make("dd", { text: value })); };
  fact("about", it.detail);
  fact("network", it.network);
  fact("node", it.node);
  const busy = drawing.busyOf(it.kind, it.name);
  if (busy) {
    const words = { port: ["sends", "receives"], router: ["passes", ""], network: ["comes in", "leaves"], node: ["from it", "to it"] }[it.kind];
    fact(words[0], rate(busy.sent));
    if (words[1]) fact(words[1], rate(busy.received));
  }
  element("about-facts").replaceChildren(...facts);
}

const flows = () => search.refreshFlows(async (row) => {
  const packet = search.packetOf(row);
  if (row.from.port) return trace.trace(row.from.port, packet);
  element("trace-packet").value = packet;
  element("trace-verdict").hidden = false;
  element("trace-verdict").textContent = "This flow begins at another node or outside: trace it there, or from one of this node's ports.";
});

function pressed() {
  for (const view of ["networks", "nodes"]) {
    element(`view-${view}`).setAttribute("aria-pressed", String(drawing.state.view === view));
  }
}

const look = attempt(async () => {
  await live.refresh();
  await drawing.refresh();
  await flows();
});

async function tick() {
  await look();
  setTimeout(wait, EVERY_MS);
}

// Nobody looks at a page in the background.
function wait() {
  if (document.hidden) document.addEventListener("visibilitychange", wait, { once: true });
  else tick();
}

for (const view of ["networks", "nodes"]) {
  element(`view-${view}`).addEventListener("click", attempt(async () => {
    drawing.state.view = view;
    pressed();
    await drawing.refresh(true);
  }));
}
drawing.onChoose(choose);
drawing.listen();
trace.listen();
search.listenForObjects(choose);
search.listenForFlows(flows);
tick();
