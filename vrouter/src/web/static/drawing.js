// The drawing: boxes and lines where the program says, with rates on them, a packet's way lit up, and a view that
// moves and zooms.

import { ask, element, rate } from "/ask.js";

const SVG = "http://www.w3.org/2000/svg";
const svg = element("drawing");
// Together no more than the program draws for anybody.
const SHOWN_MAX = 40;
const OPEN_MAX = 20;

export const state = { view: "networks", open: { networks: new Set(), nodes: new Set() }, show: new Set(), chosen: null, path: [] };
let drawing = null;
let drawn = "";
let busy = new Map();
let frame = { x: 0, y: 0, width: 100, height: 100 };
let choose = () => {};

export const key = (kind, name) => `${kind} ${name}`;

function shape(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// No measuring: so many units to a letter, rather too many.
function fitting(text, width, letter = 7.8) {
  const most = Math.max(3, Math.floor((width - 14) / letter));
  const letters = [...text];
  return letters.length <= most ? text : `${letters.slice(0, most - 1).join("")}…`;
}

// Draws again if the topology or what is wanted of it has changed.
export async function refresh(fit = false) {
  const [open, show] = [state.open[state.view], state.show];
  const asked = { open: [...open], show: [...show] };
  const wish = JSON.stringify(asked);
  const path = `/api/drawing?view=${state.view}&wish=${encodeURIComponent(wish)}`;
  const got = await ask(path);
  forget(open, asked.open, got.boxes.filter((box) => box.can_toggle));
  forget(show, asked.show, got.boxes.filter((box) => box.kind === "port"));
  const text = JSON.stringify(got);
  const isOther = drawing === null || drawing.view !== got.view;
  if (text !== drawn) {
    drawn = text;
    drawing = got;
    draw();
  }
  if (isOther || fit) fitAll();
}

// What is not in the topology any more is not asked for any more.
function forget(names, asked, boxes) {
  const there = new Set(boxes.map((box) => box.name));
  for (const name of asked) if (!there.has(name)) names.delete(name);
}

// Puts a name last; of too many the first go.
function add(names, name, most) {
  names.delete(name);
  names.add(name);
  for (const first of names) {
    if (names.size <= most) break;
    names.delete(first);
  }
}

function draw() {
  const lines = shape("g", {});
  drawing.lines.forEach((line, i) => lines.append(shape("line", { x1: line.x1, y1: line.y1, x2: line.x2, y2: line.y2, "data-line": i })));
  const boxes = shape("g", {});
  drawing.boxes.forEach((box, i) => boxes.append(drawBox(box, i)));
  svg.replaceChildren(lines, boxes, shape("g", { id: "order" }));
  showBusy();
  showWay();
}

function drawBox(box, i) {
  const classes = ["thing", box.kind, box.external ? "external" : "", box.place].filter(Boolean).join(" ");
  const group = shape("g", { class: classes, "data-box": i, "data-kind": box.kind, "data-name": box.name });
  group.append(shape("rect", { x: box.x, y: box.y, width: box.w, height: box.h }));
  const isSmall = box.kind === "port" || box.kind === "group";
  group.append(shape("text", { class: "name", x: box.x + 7, y: box.y + (isSmall ? 16 : 18) }, fitting(box.name, isSmall && box.kind === "group" ? box.w - 80 : box.w)));
  if (box.kind === "group") {
    group.append(shape("text", { class: "detail", x: box.x + box.w - 7, y: box.y + 16, "text-anchor": "end" }, box.detail));
  } else if (box.kind !== "port") {
    const sign = box.can_toggle ? (box.is_open ? "▾ " : "▸ ") : "";
    const count = box.ports ? `${sign}${box.ports} port${box.ports === 1 ? "" : "s"} · ` : "";
    group.append(shape("text", { class: "detail", x: box.x + 7, y: box.y + 33 }, fitting(count + box.detail, box.w, 6.2)));
  }
  if (box.kind !== "port" && box.kind !== "group") {
    group.append(shape("text", { class: "rate", x: box.x + box.w - 7, y: box.y + 18, "text-anchor": "end" }, ""));
  }
  const title = shape("title", {}, [`${box.kind} ${box.name}`, box.detail, box.network && `network ${box.network}`, box.node && `node ${box.node}`].filter(Boolean).join("\n"));
  group.append(title);
  group.setAttribute("tabindex", "0");
  group.addEventListener("click", () => { if (!moved) toggle(box); });
  group.addEventListener("keydown", (event) => { if (event.key === "Enter") toggle(box); });
  return group;
}

function toggle(box) {
  if (box.can_toggle) {
    const open = state.open[state.view];
    if (!open.delete(box.name)) add(open, box.name, OPEN_MAX);
  }
  if (box.kind !== "group") choose(box);
}

export function onChoose(call) {
  choose = call;
}

function boxes() {
  return svg.querySelectorAll("[data-box]");
}

// Rates by object: { kind, name, sent, received }.
export function setBusy(list) {
  busy = new Map(list.map((it) => [key(it.kind, it.name), it]));
  showBusy();
}

export function busyOf(kind, name) {
  return busy.get(key(kind, name));
}

function showBusy() {
  if (drawing === null) return;
  for (const group of boxes()) {
    const box = drawing.boxes[group.dataset.box];
    const now = busy.get(key(box.kind, box.name));
    group.classList.toggle("busy", Boolean(now));
    const text = group.querySelector(".rate");
    if (text) {
      const both = now && { packets: now.sent.packets + now.received.packets, bits: Math.max(now.sent.bits, now.received.bits) };
      text.textContent = both ? rate(both).split(",")[0] : "";
    }
  }
}

// Draws an object whatever is closed, and brings it into view.
export async function reveal(kind, name) {
  state.chosen = key(kind, name);
  if (kind === "port") show([name]);
  if (kind === "node" && state.view !== "nodes") state.view = "nodes";
  if ((kind === "network" || kind === "router") && state.view !== "networks") state.view = "networks";
  await refresh();
  showWay();
  const box = drawing.boxes.find((box) => key(box.kind, box.name) === state.chosen);
  if (box && !isInView(box)) setFrame({ ...frame, x: box.x + box.w / 2 - frame.width / 2, y: box.y + box.h / 2 - frame.height / 2 });
}

function show(names) {
  for (const name of names) add(state.show, name, SHOWN_MAX);
}

// Lights a packet's way: objects in order.
export async function light(path) {
  state.path = path;
  show(path.filter((it) => it.kind === "port").map((it) => it.name));
  await refresh();
  showWay();
}

function showWay() {
  if (drawing === null) return;
  const order = svg.querySelector("#order");
  order.replaceChildren();
  const steps = new Map();
  const here = new Set(drawing.boxes.map((box) => key(box.kind, box.name)));
  const way = state.path.map((it) => key(it.kind === "gateway" ? "node" : it.kind, it.name)).filter((it) => here.has(it));
  way.forEach((at, i) => steps.set(at, [...(steps.get(at) ?? []), i + 1]));
  const lit = new Set();
  for (const group of boxes()) {
    const box = drawing.boxes[group.dataset.box];
    const mine = steps.get(key(box.kind, box.name));
    group.classList.toggle("lit", Boolean(mine));
    group.classList.toggle("chosen", state.chosen === key(box.kind, box.name));
    if (!mine) continue;
    lit.add(Number(group.dataset.box));
    const sign = shape("g", { class: "order" });
    const text = mine.join(",");
    sign.append(shape("circle", { cx: box.x, cy: box.y, r: 8 + 2 * (text.length - 1) }));
    sign.append(shape("text", { x: box.x, y: box.y + 4 }, text));
    order.append(sign);
  }
  for (const line of svg.querySelectorAll("[data-line]")) {
    const { from, to } = drawing.lines[line.dataset.line];
    line.classList.toggle("lit", lit.has(from) && lit.has(to));
  }
}

// The view.

function setFrame(next) {
  frame = next;
  svg.setAttribute("viewBox", `${frame.x} ${frame.y} ${frame.width} ${frame.height}`);
}

function isInView(box) {
  return box.x >= frame.x && box.y >= frame.y && box.x + box.w <= frame.x + frame.width && box.y + box.h <= frame.y + frame.height;
}

// All of it, but not so small that nothing can be read.
export function fitAll() {
  const { width, height } = svg.getBoundingClientRect();
  const scale = Math.min(1.5, Math.max(0.45, Math.min(width / drawing.width, height / drawing.height)));
  const size = { width: width / scale, height: height / scale };
  const x = Math.min(0, (drawing.width - size.width) / 2);
  setFrame({ x, y: 0, ...size });
}

function zoom(by, at) {
  const width = Math.min(20000, Math.max(120, frame.width * by));
  const real = width / frame.width;
  const x = at ? at.x : frame.x + frame.width / 2;
  const y = at ? at.y : frame.y + frame.height / 2;
  setFrame({ x: x - (x - frame.x) * real, y: y - (y - frame.y) * real, width, height: frame.height * real });
}

let from = null;
let moved = false;

export function listen() {
  svg.addEventListener("wheel", (event) => {
    event.preventDefault();
    const place = svg.getBoundingClientRect();
    const scale = frame.width / place.width;
    zoom(event.deltaY > 0 ? 1.15 : 0.87, { x: frame.x + (event.clientX - place.x) * scale, y: frame.y + (event.clientY - place.y) * scale });
  }, { passive: false });
  svg.addEventListener("pointerdown", (event) => {
    from = { x: event.clientX, y: event.clientY, frame };
    moved = false;
  });
  window.addEventListener("pointermove", (event) => {
    if (!from) return;
    const scale = frame.width / svg.getBoundingClientRect().width;
    const [dx, dy] = [event.clientX - from.x, event.clientY - from.y];
    if (Math.abs(dx) + Math.abs(dy) > 4) moved = true;
    if (moved) setFrame({ ...frame, x: from.frame.x - dx * scale, y: from.frame.y - dy * scale });
  });
  window.addEventListener("pointerup", () => { from = null; });
  window.addEventListener("resize", () => { if (drawing) fitAll(); });
  for (const button of document.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", () => {
      if (button.dataset.zoom === "fit") fitAll();
      else zoom(button.dataset.zoom === "in" ? 0.8 : 1.25);
    });
  }
}
