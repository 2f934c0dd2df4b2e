// What changes all the time: rates, drops, how nodes are.

import { ask, cell, element, make, short } from "/ask.js";
import { setBusy } from "/drawing.js";

let shown = null;

export async function refresh() {
  const live = await ask("/api/live");
  show(live);
  return live;
}

// Until the next look says otherwise.
export function complain(text) {
  shown = text;
  const notice = element("notice");
  notice.textContent = text;
  notice.hidden = text === "";
}

function show(live) {
  element("node").textContent = live.node;
  const health = element("health");
  health.textContent = live.healthy ? "healthy" : "needs attention";
  health.className = `pill ${live.healthy ? "good" : "bad"}`;
  health.title = (live.complaints ?? []).join("\n");
  element("revision").textContent = `epoch ${live.epoch}`;
  element("clock").textContent = `look ${live.sample}, ${new Date(live.at_ms).toLocaleTimeString()}`;
  setBusy(live.busy ?? []);
  showDrops(live.drops);
  showNodes(live);
  const notes = [...(live.complaints ?? [])];
  if (live.error) notes.unshift(`The maps cannot be read, this is what was seen before: ${live.error}`);
  if (!live.complete) notes.push(`There are more than ${short(live.flows)} flows: rates are those of the first so many.`);
  const text = notes.join("\n");
  if (text !== shown) complain(text);
}

function showDrops(drops) {
  const some = drops.filter((it) => it.packets > 0).sort((a, b) => b.per_second - a.per_second || b.packets - a.packets);
  const total = some.reduce((sum, it) => sum + it.packets, 0);
  element("drops-total").textContent = `${total} packets`;
  const rows = some.map((it) => {
    const row = make("tr", { title: it.meaning, className: it.per_second > 0 ? "rising" : "" },
      cell(it.reason), cell(it.packets, "number"), cell(it.per_second > 0 ? `${short(it.per_second)} p/s` : "", "number"));
    row.dataset.reason = it.reason;
    row.dataset.packets = it.packets;
    return row;
  });
  element("drops").tBodies[0].replaceChildren(...rows);
}

function showNodes(live) {
  const rows = live.nodes.map((node) => make("tr", { title: [`VTEP ${node.vtep}`, ...node.problems].join("\n") },
    cell(node.here ? `${node.name} (this)` : node.name), cell(node.health), cell(node.revision)));
  if (live.nodes_error) rows.push(make("tr", {}, make("td", { colSpan: 3, className: "error", text: `etcd: ${live.nodes_error}` })));
  element("nodes").tBodies[0].replaceChildren(...rows);
}
