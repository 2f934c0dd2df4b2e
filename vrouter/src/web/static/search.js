// Objects and flows by text.

import { ask, cell, element, make } from "/ask.js";

// Calls once somebody has stopped typing.
function settled(call) {
  let timer = null;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(call, 250);
  };
}

export const findObjects = (text) => ask(`/api/objects?text=${encodeURIComponent(text)}`);

export function listenForObjects(choose) {
  const [form, input, list] = [element("find"), element("find-text"), element("found")];
  let last = 0;
  const close = () => {
    list.replaceChildren();
    list.hidden = true;
  };
  const find = async () => {
    const turn = ++last;
    if (input.value.trim() === "") return close();
    let rows;
    try {
      const found = await findObjects(input.value);
      rows = found.slice(0, 50).map((it) => {
        const button = make("button", { type: "button" }, make("b", { text: it.name }), ` ${it.kind} `,
          make("span", { className: "quiet", text: [it.detail, it.network, it.node].filter(Boolean).join(" · ") }));
        button.addEventListener("click", () => { close(); choose(it); });
        return make("li", {}, button);
      });
      if (rows.length === 0) rows = [make("li", { className: "quiet", text: "nothing is called or addressed so" })];
    } catch (error) {
      rows = [make("li", { className: "error", text: error.message })];
    }
    if (turn === last) {
      list.replaceChildren(...rows);
      list.hidden = false;
    }
  };
  input.addEventListener("input", settled(find));
  input.addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    await find();
    list.querySelector("button")?.click();
  });
  document.addEventListener("click", (event) => { if (!form.contains(event.target)) close(); });
}

const endpoint = (address, port) => (port === undefined ? address : address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`);
const tuple = (it) => `${endpoint(it.src, it.sport)} > ${endpoint(it.dst, it.dport)}${it.id === undefined ? "" : ` id ${it.id}`}`;
const end = (it) => it.port ?? (it.nexthop ? `${it.network ?? "?"} via ${it.nexthop}` : it.node ?? it.network ?? "");

function translation(row) {
  if (!row.translated || !row.reply) return "";
  const changes = [];
  const [seen, sent] = [endpoint(row.reply.dst, row.reply.dport), endpoint(row.original.src, row.original.sport)];
  if (seen !== sent) changes.push(`src ${seen}`);
  const [leads, went] = [endpoint(row.reply.src, row.reply.sport), endpoint(row.original.dst, row.original.dport)];
  if (leads !== went) changes.push(`dst ${leads}`);
  return changes.join(" ");
}

// A flow's packet, as `vrouter trace` reads it.
export function packetOf(row) {
  const { protocol, original: it } = row;
  if (it.type !== undefined) return `icmp ${it.src} > ${it.dst} type ${it.type} code ${it.code}${it.id === undefined ? "" : ` id ${it.id}`}`;
  if (it.sport !== undefined && ["tcp", "udp", "sctp"].includes(protocol)) return `${protocol} ${tuple(it)}`;
  return `ip ${protocol} ${it.src} > ${it.dst}`;
}

export async function refreshFlows(trace) {
  const error = element("flows-error");
  try {
    const found = await ask(`/api/flows?text=${encodeURIComponent(element("flows-text").value)}`);
    error.hidden = true;
    const more = found.flows.length < found.matching ? `, the first ${found.flows.length}` : "";
    element("flows-count").textContent = `${found.matching} of ${found.complete ? "" : "the first "}${found.known}${more}`;
    element("flows").tBodies[0].replaceChildren(...found.flows.map((row) => line(row, trace)));
  } catch (wrong) {
    error.textContent = wrong.message;
    error.hidden = false;
  }
}

function line(row, trace) {
  const made = make("tr", { title: "Trace it" }, cell(row.protocol), cell(row.state), cell(tuple(row.original)), cell(translation(row)),
    cell(end(row.from)), cell(end(row.to)), cell(`${row.original_packets}/${row.reply_packets}`), cell(`${row.original_bytes}/${row.reply_bytes}`),
    cell(`${row.idle_seconds}s`), cell(row.rule));
  made.tabIndex = 0;
  made.addEventListener("click", () => trace(row));
  made.addEventListener("keydown", (event) => { if (event.key === "Enter") trace(row); });
  return made;
}

export function listenForFlows(refresh) {
  element("flows-text").addEventListener("input", settled(refresh));
  element("flows-form").addEventListener("submit", (event) => { event.preventDefault(); refresh(); });
}
