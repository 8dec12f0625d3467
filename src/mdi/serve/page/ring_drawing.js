// The drawn ring: nodes with the shares of their time, the links between them, and the messages under way.

import { KeyedChildren, setAttributes, setText, shape } from "./dom.js";
import { arc, Geometry } from "./ring_geometry.js";
import { Messages } from "./ring_messages.js";
import { describe, isLeftOut, stateOf } from "./ring_state.js";
import { layers, rate } from "./units.js";

const SHARES = ["compute", "transfer", "idle"];
const ROOM_FOR_TEXT = 38; // radius of a node

export class RingDrawing {
    #svg;
    #links;
    #nodes;
    #messages;
    #centre = new Centre();
    #snapshot = null;
    #geometry = null;

    constructor(svg) {
        this.#svg = svg;
        const [links, messages, nodes] = ["links", "messages", "nodes"].map((name) => shape("g", { class: name }));
        svg.append(links, messages, this.#centre.node, nodes);
        this.#links = new KeyedChildren(
            links,
            (link) => link.place,
            () => new Link(),
        );
        this.#nodes = new KeyedChildren(
            nodes,
            (item) => item.node.name,
            () => new NodeShape(),
        );
        this.#messages = new Messages(messages);
        new ResizeObserver(() => this.#draw()).observe(svg);
    }

    update(snapshot) {
        this.#snapshot = snapshot;
        this.#draw();
    }

    #draw() {
        const width = Math.round(this.#svg.clientWidth);
        if (this.#snapshot === null || width === 0) return;
        const { nodes, messages } = this.#snapshot;
        const geometry = this.#geometryFor(nodes.length, width);
        this.#links.update(nodes.map((_, place) => ({ place, geometry, state: linkState(nodes, place) })));
        this.#nodes.update(nodes.map((node, place) => ({ node, place, geometry })));
        this.#centre.update(this.#snapshot, geometry);
        this.#messages.update(this.#snapshot.state === "recovering" ? [] : messages, geometry);
        setAttributes(this.#svg, { "aria-label": describe(this.#snapshot) });
    }

    #geometryFor(n, width) {
        if (this.#geometry?.n !== n || this.#geometry.width !== width) {
            this.#geometry = new Geometry(n, width);
            const { height } = this.#geometry;
            setAttributes(this.#svg, { viewBox: `0 0 ${width} ${height}`, height });
        }
        return this.#geometry;
    }
}

/** Of the way behind the node at a place. Nodes that were left out have the last places; messages pass them by. */
function linkState(nodes, place) {
    const ends = [nodes[place], nodes[(place + 1) % nodes.length]];
    if (ends.some((node) => stateOf(node) === "lost" && !isLeftOut(node))) return "broken";
    return ends.some(isLeftOut) ? "bypass" : "";
}

/** The way from a node to the next one. */
class Link {
    #line = shape("path", { class: "track" });
    #arrow = shape("path", { class: "arrow", d: "M -4 -5 L 4 0 L -4 5" });
    node = shape("g", {}, this.#line, this.#arrow);

    update({ place, geometry, state }) {
        const middle = geometry.ofArrow(place);
        const [x, y] = geometry.at(middle);
        setAttributes(this.#line, { d: geometry.arc(place / geometry.n, (place + 1) / geometry.n) });
        setAttributes(this.#arrow, { transform: `translate(${x} ${y}) rotate(${360 * middle})` });
        setAttributes(this.node, { class: state });
    }
}

/** A node: its name and layers, and around them how it spent the last seconds. */
class NodeShape {
    #disc = shape("circle", { class: "disc" });
    #idleRing = shape("circle", { class: "share-ring" });
    #shares = SHARES.map((name) => shape("path", { class: `share ${name}` }));
    #name = shape("text", { class: "name", y: -12 });
    #layers = shape("text", { class: "layers", y: 6 });
    #caption = shape("text", { class: "caption", y: 21 });
    node = shape("g", {}, this.#disc, this.#idleRing, ...this.#shares, this.#name, this.#layers, this.#caption);

    update({ node, place, geometry }) {
        const [x, y] = geometry.ofNode(place);
        const radius = geometry.node;
        setAttributes(this.node, { transform: `translate(${x} ${y})`, class: `node ${stateOf(node)}` });
        setAttributes(this.#disc, { r: radius });
        setAttributes(this.#idleRing, { r: radius - 4 });
        this.#showShares(node, radius - 4);
        this.#showTexts(node, place, radius);
    }

    #showShares(node, radius) {
        let from = 0;
        SHARES.forEach((name, i) => {
            const share = stateOf(node) === "running" ? (node[name] ?? 0) : 0;
            const d = share > 0.002 ? arc(0, 0, radius, from, Math.min(1, from + share)) : "";
            setAttributes(this.#shares[i], { d });
            from += share;
        });
    }

    /** Small nodes have room for a number alone; the list below the drawing has the rest. */
    #showTexts(node, place, radius) {
        const isSmall = radius < ROOM_FOR_TEXT;
        const texts = isSmall ? ["", String(place), ""] : textsOf(node);
        [this.#name, this.#layers, this.#caption].forEach((text, i) => setText(text, texts[i]));
        this.node.classList.toggle("small", isSmall);
    }
}

function textsOf(node) {
    if (stateOf(node) === "lost") return [node.name, "lost", `${Math.floor(node.missing_s ?? 0)} s`];
    return [node.name, layers(node.layers), "layers"];
}

/** The middle of the ring: how fast all of it is. */
class Centre {
    #rate = shape("text", { class: "rate" });
    #unit = shape("text", { class: "unit", y: 18 });
    #slots = shape("text", { class: "slots", y: 38 });
    #queue = shape("text", { class: "slots", y: 54 });
    node = shape("g", { class: "centre" }, this.#rate, this.#unit, this.#slots, this.#queue);

    update(snapshot, geometry) {
        const { slots, queue } = snapshot;
        setAttributes(this.node, { transform: `translate(${geometry.cx} ${geometry.cy - 14})` });
        setText(this.#rate, rate(snapshot.tokens_per_s));
        setText(this.#unit, "tokens/s");
        setText(this.#slots, `${slots.used} of ${slots.total} slots`);
        setText(this.#queue, queue.waiting > 0 ? `${queue.waiting} waiting` : "");
    }
}
