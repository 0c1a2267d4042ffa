// Show a small part of Markdown as elements. Links and images stay text, so that an answer can lead
// nowhere and load nothing; everything else that is not known stays text as well.
import { make } from "./dom.js";

const INLINE = /(?<!`)(`+)([^`]+?)\1(?!`)|\*\*(?=\S)([^*]+?)\*\*|\*(?=\S)([^*\n]+?)\*/;

function inline(text) {
  const nodes = [];
  for (let rest = text; rest; ) {
    const match = INLINE.exec(rest);
    if (!match) {
      nodes.push(rest);
      break;
    }
    if (match.index) nodes.push(rest.slice(0, match.index));
    const [all, , code, strong, emphasis] = match;
    if (code !== undefined) nodes.push(make("code", {}, code));
    else if (strong !== undefined) nodes.push(make("strong", {}, ...inline(strong)));
    else nodes.push(make("em", {}, ...inline(emphasis)));
    rest = rest.slice(match.index + all.length);
  }
  return nodes;
}

const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());

function table(lines) {
  const row = (line, tag) => make("tr", {}, ...cells(line).map((cell) => make(tag, {}, ...inline(cell))));
  const [head, , ...body] = lines;
  return make("table", {}, make("thead", {}, row(head, "th")), make("tbody", {}, ...body.map((line) => row(line, "td"))));
}

/** Take lines from the front as long as they match. */
function take(lines, isOne) {
  const taken = [];
  while (lines.length && isOne(lines[0])) taken.push(lines.shift());
  return taken;
}

const FENCE = /^\s*```[^`]*$/; // a line with more of them is code within a text
const HEADING = /^#{1,6}\s+/;
const BULLET = /^\s*[-*+]\s+/;
const NUMBER = /^\s*\d{1,9}[.)]\s+/;
const QUOTE = /^\s*(?:>\s?)+/; // a quote within a quote is shown as one
const RULE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)+\|?\s*$/;

const list = (tag, lines, mark) =>
  make(tag, {}, ...lines.map((line) => make("li", {}, ...inline(line.replace(mark, "")))));

function block(lines) {
  const line = lines[0];
  if (FENCE.test(line)) {
    lines.shift();
    const code = take(lines, (each) => !FENCE.test(each));
    lines.shift();
    return make("pre", { tabIndex: 0 }, make("code", {}, code.join("\n")));
  }
  if (HEADING.test(line)) return make("h3", {}, ...inline(lines.shift().replace(HEADING, "")));
  if (BULLET.test(line)) return list("ul", take(lines, (each) => BULLET.test(each)), BULLET);
  if (NUMBER.test(line)) {
    const start = parseInt(line, 10);
    const made = list("ol", take(lines, (each) => NUMBER.test(each)), NUMBER);
    made.start = start;
    return made;
  }
  if (QUOTE.test(line)) {
    const quoted = take(lines, (each) => QUOTE.test(each)).map((each) => each.replace(QUOTE, ""));
    return make("blockquote", {}, ...render(quoted.join("\n")));
  }
  if (line.includes("|") && lines.length > 1 && RULE.test(lines[1])) {
    return table(take(lines, (each) => each.includes("|")));
  }
  const special = (each) => [FENCE, HEADING, BULLET, NUMBER, QUOTE].some((mark) => mark.test(each));
  const first = lines.shift();
  const text = [first, ...take(lines, (each) => each.trim() && !special(each))];
  const nodes = text.flatMap((each, place) => (place ? [make("br"), ...inline(each)] : inline(each)));
  return make("p", {}, ...nodes);
}

/** Return the elements of a text in Markdown. */
export function render(text) {
  const lines = text.split("\n");
  const blocks = [];
  while (lines.length) {
    if (!lines[0].trim()) lines.shift();
    else blocks.push(block(lines));
  }
  return blocks;
}
