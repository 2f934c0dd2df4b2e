// Asks the program, and says plainly what went wrong. Text from there is only ever put in text nodes.

export class Refused extends Error {}

export async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { credentials: "same-origin", ...options });
  } catch {
    throw new Refused("vrouter web does not answer: is it running?");
  }
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(body.error ?? `${answer.status} ${answer.statusText}`);
  return body;
}

export const element = (id) => document.getElementById(id);

// An element with classes and text; children may be given, too.
export function make(tag, { className, text, ...rest } = {}, ...children) {
  const made = Object.assign(document.createElement(tag), rest);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

export function cell(text, className) {
  return make("td", { text: String(text ?? ""), className });
}

const UNITS = ["", "k", "M", "G", "T"];

// Three digits and a unit.
export function short(number) {
  let unit = 0;
  while (number >= 1000 && unit < UNITS.length - 1) {
    number /= 1000;
    unit += 1;
  }
  const digits = unit === 0 && Number.isInteger(number) ? 0 : number < 10 ? 1 : 0;
  return `${number.toFixed(digits)}${unit ? ` ${UNITS[unit]}` : ""}`;
}

export function rate({ packets, bits }) {
  return `${short(bits)}${bits >= 1000 ? "" : " "}b/s, ${short(packets)} p/s`;
}
