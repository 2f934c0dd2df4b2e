// Traces: a packet's way lit up on the drawing, and its steps.

import { ask, element, make } from "/ask.js";
import { light } from "/drawing.js";

let last = 0;

export async function trace(port, packet, afresh = false) {
  const turn = ++last;
  [element("trace-port").value, element("trace-packet").value] = [port, packet];
  element("trace-afresh").checked = afresh;
  say("tracing …", "");
  element("trace-hops").replaceChildren();
  let journey;
  try {
    journey = await ask("/api/trace", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ port, packet, afresh }),
    });
  } catch (error) {
    if (turn === last) {
      say(error.message, "bad");
      await light([]);
    }
    return;
  }
  if (turn !== last) return;
  show(journey);
  await light(journey.path ?? []);
}

function say(text, className) {
  const verdict = element("trace-verdict");
  verdict.textContent = text;
  verdict.className = className;
  verdict.hidden = text === "";
  element("trace-clear").hidden = text === "";
}

function show({ hops = [], verdict = {} }) {
  const isLost = verdict.kind === "dropped";
  const isSaid = verdict.text?.startsWith(verdict.kind);
  say([isSaid ? null : verdict.kind, verdict.reason, verdict.text].filter(Boolean).join(": "), isLost ? "bad" : "good");
  const parts = hops.flatMap((hop) => [
    make("h3", { text: [hop.node, hop.entry, hop.source].filter(Boolean).join(" · ") }),
    make("ol", {}, ...(hop.steps ?? []).map((step) => make("li", { text: `${step.text} ` }, make("code", { text: step.table ?? "" })))),
    make("p", { className: "quiet", text: [...(hop.rewrites ?? []), hop.verdict?.text].filter(Boolean).join("; ") }),
  ]);
  element("trace-hops").replaceChildren(...parts);
}

export function listen() {
  element("trace").addEventListener("submit", (event) => {
    event.preventDefault();
    trace(element("trace-port").value.trim(), element("trace-packet").value.trim(), element("trace-afresh").checked);
  });
  element("trace-clear").addEventListener("click", () => {
    last += 1;
    say("", "");
    element("trace-hops").replaceChildren();
    light([]);
  });
}
