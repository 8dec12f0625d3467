// Markdown to DOM nodes: what models write of it. https://spec.commonmark.org, and tables as GitHub has them.
//
// A text that grows is split into blocks anew each time, and only blocks that have changed are rendered again.

import { codeBlock } from "./code_block.js";
import { element } from "./dom.js";
import { inline } from "./inline.js";

const MAX_DEPTH = 8;
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+([^]*)$/;
const RULE = /^ {0,3}([-*_])(?: *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?/;
const MARKER = /^( *)([-*+]|\d{1,9}[.)])(?: (?= *\S)|$)/;
const ALIGNMENT = /^:?-+:?$/;

/** Shows a text that grows. */
export class MarkdownView {
    #container;
    #sources = [];

    constructor(container) {
        this.#container = container;
    }

    update(text) {
        const blocks = blocksOf(text.split("\n"), 0);
        const changed = blocks.findIndex((block, index) => block.source !== this.#sources[index]);
        const nSame = changed === -1 ? blocks.length : changed;
        while (this.#container.childNodes.length > nSame) this.#container.lastChild.remove();
        for (const block of blocks.slice(nSame)) this.#container.append(block.render());
        this.#sources = blocks.map((block) => block.source);
    }
}

function rendered(lines, depth) {
    return blocksOf(lines, depth).map((block) => block.render());
}

/** The blocks of some lines: each with its source and a function that makes its node. */
function blocksOf(lines, depth) {
    const rules = depth < MAX_DEPTH ? [fence, heading, rule, quote, list, table] : [];
    const blocks = [];
    for (let at = 0; at < lines.length;) {
        if (lines[at].trim() === "") {
            at += 1;
            continue;
        }
        const found = firstOf(rules, lines, at, depth) ?? paragraph(lines, at, depth);
        blocks.push({ source: lines.slice(at, found.end).join("\n"), render: found.render });
        at = found.end;
    }
    return blocks;
}

function firstOf(rules, lines, at, depth) {
    for (const rule of rules) {
        const found = rule(lines, at, depth);
        if (found !== null) return found;
    }
    return null;
}

// Each rule looks at the lines from `at` on, and tells the line behind its block, or null.

function fence(lines, at) {
    const opening = FENCE.exec(lines[at]);
    if (opening === null) return null;
    const fenceOf = opening[1];
    const closes = (line) => line.trim().startsWith(fenceOf) && line.trim().replaceAll(fenceOf[0], "") === "";
    let end = at + 1;
    while (end < lines.length && !closes(lines[end])) end += 1;
    const code = lines.slice(at + 1, end).join("\n");
    const language = opening[2].trim().split(/\s/)[0];
    return { end: Math.min(end + 1, lines.length), render: () => codeBlock(code, language) };
}

function heading(lines, at) {
    const found = HEADING.exec(lines[at]);
    if (found === null) return null;
    const level = Math.min(6, Math.max(4, found[1].length + 2)); // below the page's own, which end with the third
    return { end: at + 1, render: () => element(`h${level}`, {}, inline(found[2].trim())) };
}

function rule(lines, at) {
    return RULE.test(lines[at]) ? { end: at + 1, render: () => element("hr") } : null;
}

function quote(lines, at, depth) {
    let end = at;
    while (end < lines.length && QUOTE.test(lines[end])) end += 1;
    if (end === at) return null;
    const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
    return { end, render: () => element("blockquote", {}, rendered(inner, depth + 1)) };
}

function list(lines, at, depth) {
    const first = markerOf(lines[at]);
    if (first === null) return null;
    const items = [];
    let end = at;
    for (;;) {
        const marker = end < lines.length ? markerOf(lines[end]) : null;
        if (marker === null || marker.isOrdered !== first.isOrdered || marker.indent > first.indent + 1) break;
        const item = itemOf(lines, end, marker);
        items.push(item.lines);
        end = item.end;
    }
    const render = () => {
        const children = items.map((item) => element("li", {}, withoutParagraph(rendered(item, depth + 1))));
        return first.isOrdered ? element("ol", { start: first.number }, children) : element("ul", {}, children);
    };
    return { end: withoutBlankEnd(lines, at, end), render };
}

function markerOf(line) {
    const found = RULE.test(line) ? null : MARKER.exec(line);
    if (found === null) return null;
    const number = Number.parseInt(found[2], 10);
    return { indent: found[1].length, width: found[0].length, isOrdered: !Number.isNaN(number), number };
}

/** The lines of an item, without its marker and indent: those that are indented, and a paragraph's own next lines. */
function itemOf(lines, at, marker) {
    const own = [lines[at].slice(marker.width)];
    let end = at + 1;
    for (; end < lines.length; end += 1) {
        const line = lines[end];
        const indent = line.length - line.trimStart().length;
        const isBlank = line.trim() === "";
        const isContinued = lines[end - 1].trim() !== "" && !startsBlock(lines, end);
        if (!isBlank && indent < marker.indent + 2 && !isContinued) break;
        own.push(line.slice(Math.min(indent, marker.width)));
    }
    return { lines: own, end };
}

function withoutBlankEnd(lines, at, end) {
    let last = end;
    while (last > at + 1 && lines[last - 1].trim() === "") last -= 1;
    return last;
}

/** An item of one paragraph is shown as its text alone; so is the first paragraph of others. */
function withoutParagraph(nodes) {
    return nodes.length > 0 && nodes[0].tagName === "P" ? [...nodes[0].childNodes, ...nodes.slice(1)] : nodes;
}

function table(lines, at) {
    if (!lines[at].includes("|") || at + 1 === lines.length) return null;
    const [head, alignments] = [cellsOf(lines[at]), cellsOf(lines[at + 1])];
    if (head.length !== alignments.length || !alignments.every((cell) => ALIGNMENT.test(cell))) return null;
    let end = at + 2;
    while (end < lines.length && lines[end].includes("|")) end += 1;
    const row = (tag, cells) => {
        const children = head.map((_, i) => element(tag, { className: sideOf(alignments[i]) }, inline(cells[i] ?? "")));
        return element("tr", {}, children);
    };
    const render = () => {
        const rows = lines.slice(at + 2, end).map((line) => row("td", cellsOf(line)));
        const body = element("tbody", {}, rows);
        const whole = element("table", {}, element("thead", {}, row("th", head)), body);
        return element("div", { className: "wide", tabIndex: 0, role: "region", "aria-label": "Table" }, whole);
    };
    return { end, render };
}

function cellsOf(line) {
    const cells = line.trim().replaceAll("\\|", "\u0000").split("|");
    if (cells[0] === "") cells.shift();
    if (cells.at(-1) === "") cells.pop();
    return cells.map((cell) => cell.trim().replaceAll("\u0000", "|"));
}

function sideOf(alignment) {
    if (!alignment.endsWith(":")) return "";
    return alignment.startsWith(":") ? "centred" : "right";
}

function paragraph(lines, at, depth) {
    let end = at + 1;
    while (end < lines.length && lines[end].trim() !== "" && (depth >= MAX_DEPTH || !startsBlock(lines, end))) end += 1;
    const text = lines
        .slice(at, end)
        .map((line) => line.trimStart())
        .join("\n");
    return { end, render: () => element("p", {}, inline(text.trimEnd())) };
}

function startsBlock(lines, at) {
    const line = lines[at];
    if ([FENCE, HEADING, RULE, QUOTE, MARKER].some((pattern) => pattern.test(line))) return true;
    return line.includes("|") && table(lines, at) !== null;
}
