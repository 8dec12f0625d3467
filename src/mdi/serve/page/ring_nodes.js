// The nodes of the ring in words and bars, and as a table.

import { element, KeyedChildren, setText } from "./dom.js";
import { nodeState, stateOf } from "./ring_state.js";
import { bytes, count, layers, percent, rate } from "./units.js";

const SHARES = ["compute", "transfer", "idle"];
const SLOW = 1.25; // times as long as measured: from here on the starter says so, too

/** One node: everything that is known of it. */
export class NodeCard {
    #state = element("span", { className: "state" });
    #what = element("span", { className: "what" });
    #memory = new Bar(["used"]);
    #time = new Bar(SHARES);
    #speed = element("strong");
    #queue = element("span");
    #work = element("p", {}, this.#speed, " tokens/s, ", this.#queue);
    #address = element("span", { className: "address" });

    constructor({ name }) {
        const head = element("header", {}, element("h4", { textContent: name }), this.#state);
        const about = element("p", {}, this.#what, this.#address);
        this.node = element("li", {}, head, about, this.#work, this.#memory.node, this.#time.node);
    }

    update(node) {
        this.node.className = `card ${stateOf(node)}`;
        setText(this.#state, nodeState(node));
        setText(this.#what, whatOf(node));
        this.#memory.update([memoryShare(node)], memoryText(node));
        this.#time.update(
            SHARES.map((name) => node[name] ?? 0),
            timeText(node),
        );
        this.#work.hidden = node.queue === null;
        setText(this.#speed, rate(node.rows_per_s));
        setText(this.#queue, `${count(node.queue, "message")} queued`);
        setText(this.#address, node.address);
    }
}

/** A bar of one or more parts, and its numbers: those are what a screen reader has. */
class Bar {
    #parts;
    #text = element("span", { className: "numbers" });

    constructor(names) {
        this.#parts = names.map((name) => element("i", { className: name }));
        const bar = element("div", { className: "bar", "aria-hidden": "true" }, ...this.#parts);
        this.node = element("div", { className: "measure" }, this.#text, bar);
    }

    update(shares, text) {
        this.#parts.forEach((part, i) => part.style.setProperty("width", `${100 * Math.min(1, shares[i])}%`));
        setText(this.#text, text);
    }
}

function whatOf(node) {
    const weights = node.weights === null || node.weights === "none" ? [] : [node.weights];
    const span = node.layers === null ? "no layers" : `layers ${layers(node.layers)}`;
    return [span, node.device, node.dtype, ...weights].filter(Boolean).join(" · ");
}

function memoryShare(node) {
    if (node.memory_bytes === null) return 0;
    const total =
        node.memory_bytes + (node.free_memory_bytes ?? Math.max(0, node.peak_memory_bytes - node.memory_bytes));
    return total > 0 ? node.memory_bytes / total : 0;
}

function memoryText(node) {
    if (node.memory_bytes === null) return "memory not known";
    const free =
        node.free_memory_bytes === null
            ? `peak ${bytes(node.peak_memory_bytes)}`
            : `${bytes(node.free_memory_bytes)} free`;
    return `${bytes(node.memory_bytes)}, ${free}`;
}

function timeText(node) {
    if (node.compute === null) return "time not known";
    const slow = node.slowness >= SLOW ? `, ${node.slowness.toFixed(1)} times as slow as measured` : "";
    return `${percent(node.compute)} compute, ${percent(node.transfer)} transfer${slow}`; // the rest is idle
}

const COLUMNS = [
    ["Node", (node) => node.name],
    ["State", nodeState],
    ["Layers", (node) => layers(node.layers)],
    ["Device", (node) => node.device ?? "not known"],
    ["Memory", (node) => bytes(node.memory_bytes)],
    ["Tokens/s", (node) => rate(node.rows_per_s)],
    ...SHARES.map((name) => [name[0].toUpperCase() + name.slice(1), (node) => percent(node[name])]),
    ["Queue", (node) => String(node.queue ?? "–")],
];

/** The same for those who would rather read it, or cannot see a drawing. */
export class NodeTable {
    #rows;

    constructor(table) {
        const titles = COLUMNS.map(([title]) => element("th", { scope: "col", textContent: title }));
        const body = element("tbody");
        table.append(element("thead", {}, element("tr", {}, ...titles)), body);
        this.#rows = new KeyedChildren(
            body,
            (node) => node.name,
            () => new TableRow(),
        );
    }

    update(nodes) {
        this.#rows.update(nodes);
    }
}

class TableRow {
    #cells = COLUMNS.map((_, i) => (i === 0 ? element("th", { scope: "row" }) : element("td")));
    node = element("tr", {}, ...this.#cells);

    update(node) {
        COLUMNS.forEach(([, textOf], i) => setText(this.#cells[i], textOf(node)));
    }
}
