// Markdown within a block: emphasis, code, links. Every text becomes a text node; no HTML is understood.
//
// Each construct is looked for at most once per position, and searches that fail are not made again, so the time stays
// near linear in the text, whatever a model writes.

import { element } from "./dom.js";

const MAX_DEPTH = 12;
const PLAIN = / +|[^\\`*_~[!<h\n ]+|[^]/y;
const ESCAPE = /\\([!-/:-@[-`{-~])/y;
const LINE_BREAK = / *\\?\n/y;
const BACKTICKS = /`+/y;
const LINK =
    /!?\[((?:[^[\]\\]|\\[^]|\[[^[\]]*\])*)\]\(\s*<?([^\s()<>]*(?:\([^\s()<>]*\)[^\s()<>]*)*)>?(?:\s+"[^"]*")?\s*\)/y;
const ADDRESS = /<?(https?:\/\/[^\s<>"`]+)>?/y;
const DELIMITER = /\*{1,3}|_{1,3}|~~/y;
const TAGS = { 1: ["em"], 2: ["strong"], 3: ["strong", "em"] };

/** The nodes of a text. */
export function inline(text, depth = 0) {
    return depth > MAX_DEPTH ? [text] : new Inline(text, depth).nodes();
}

class Inline {
    #text;
    #depth;
    #position = 0;
    #nodes = [];
    #unclosed = new Set(); // delimiters that no closing one follows, from here on

    constructor(text, depth) {
        this.#text = text;
        this.#depth = depth;
    }

    nodes() {
        const rules = [this.#escape, this.#lineBreak, this.#code, this.#link, this.#address, this.#emphasis];
        while (this.#position < this.#text.length) {
            if (!rules.some((rule) => rule.call(this))) this.#add(this.#match(PLAIN)[0]);
        }
        return this.#nodes;
    }

    /** What `pattern` matches at the position, which then is behind it; null where it does not. */
    #match(pattern) {
        pattern.lastIndex = this.#position;
        const found = pattern.exec(this.#text);
        if (found !== null) this.#position = pattern.lastIndex;
        return found;
    }

    #add(node) {
        const last = this.#nodes.length - 1;
        if (typeof node === "string" && typeof this.#nodes[last] === "string") this.#nodes[last] += node;
        else this.#nodes.push(node);
        return true;
    }

    #escape() {
        const found = this.#match(ESCAPE);
        return found !== null && this.#add(found[1]);
    }

    #lineBreak() {
        return this.#match(LINE_BREAK) !== null && this.#add(element("br"));
    }

    #code() {
        const opening = this.#match(BACKTICKS);
        if (opening === null) return false;
        const ticks = opening[0];
        const end = this.#unclosed.has(ticks) ? -1 : endOfCode(this.#text, ticks, this.#position);
        if (end === -1) {
            this.#unclosed.add(ticks);
            return this.#add(ticks);
        }
        const code = this.#text.slice(this.#position, end).replaceAll("\n", " ");
        this.#position = end + ticks.length;
        return this.#add(element("code", { textContent: code.trim() === "" ? code : code.replace(/^ (.*) $/, "$1") }));
    }

    #link() {
        const found = this.#match(LINK);
        if (found === null) return false;
        return this.#add(anchor(found[2], inline(found[1] || found[2], this.#depth + 1)));
    }

    #address() {
        const found = this.#match(ADDRESS);
        if (found === null) return false;
        const address = withoutPunctuation(found[1]);
        // A full stop ends the sentence, not the address.
        if (!found[0].startsWith("<")) this.#position -= found[0].length - address.length;
        return this.#add(anchor(address, [address]));
    }

    #emphasis() {
        const before = this.#text[this.#position - 1] ?? " ";
        const opening = this.#match(DELIMITER);
        if (opening === null) return false;
        const delimiter = opening[0];
        const end = this.#closing(delimiter, before);
        if (end === -1) return this.#add(delimiter);
        const inner = inline(this.#text.slice(this.#position, end), this.#depth + 1);
        this.#position = end + delimiter.length;
        const tags = delimiter === "~~" ? ["del"] : TAGS[delimiter.length];
        return this.#add(tags.reduceRight((children, tag) => [element(tag, {}, children)], inner)[0]);
    }

    /** Where the delimiter before the position is closed, or -1. */
    #closing(delimiter, before) {
        const after = this.#text[this.#position] ?? " ";
        const isWithinWord = delimiter[0] === "_" && /[\p{L}\p{N}]/u.test(before);
        if (isWithinWord || /\s/.test(after) || this.#unclosed.has(delimiter)) return -1;
        const end = endOfEmphasis(this.#text, delimiter, this.#position + 1);
        if (end === -1) this.#unclosed.add(delimiter);
        return end;
    }
}

function endOfCode(text, ticks, start) {
    for (let at = text.indexOf(ticks, start); at !== -1; at = text.indexOf(ticks, at)) {
        const length = runLength(text, at);
        if (length === ticks.length) return at;
        at += length;
    }
    return -1;
}

/** A closing delimiter follows no space. In a run of three, of which one or two close, the inner ones come first. */
function endOfEmphasis(text, delimiter, start) {
    for (let at = text.indexOf(delimiter, start); at !== -1; at = text.indexOf(delimiter, at)) {
        const length = runLength(text, at);
        const closes = length === delimiter.length || (length === 3 && delimiter[0] !== "~");
        const isWithinWord = delimiter[0] === "_" && /[\p{L}\p{N}]/u.test(text[at + length] ?? " ");
        if (closes && !isWithinWord && !/\s/.test(text[at - 1])) return at + length - delimiter.length;
        at += length;
    }
    return -1;
}

function runLength(text, start) {
    let end = start;
    while (text[end] === text[start]) end += 1;
    return end - start;
}

/** An address in a sentence: what ends the sentence, or a parenthesis around the address, is not part of it. */
function withoutPunctuation(address) {
    const trimmed = address.replace(/[.,:;!?'*_~]{1,8}$/, "");
    return trimmed.endsWith(")") && !trimmed.includes("(") ? withoutPunctuation(trimmed.slice(0, -1)) : trimmed;
}

/** A link, or its text alone where it leads to anything but the web: a script, a file, this server. */
function anchor(address, children) {
    const target = URL.canParse(address) ? new URL(address) : null;
    if (!["http:", "https:", "mailto:"].includes(target?.protocol)) return element("span", {}, children);
    const safe = { href: target.href, title: target.href, target: "_blank", rel: "noopener noreferrer nofollow" };
    return element("a", safe, children);
}
