// Building and updating DOM nodes. Nothing on this page is ever parsed from a string of HTML.

const SVG = "http://www.w3.org/2000/svg";

/**
 * An HTML element. Names that it has as properties are set as such, others as attributes. Children are nodes, texts,
 * and lists of them, which may be longer than a call has room for arguments.
 */
export function element(tag, properties = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
        if (name in node) node[name] = value;
        else node.setAttribute(name, value);
    }
    for (const child of children.flat()) node.append(child);
    return node;
}

/** An SVG element with attributes. */
export function shape(tag, attributes = {}, ...children) {
    const node = document.createElementNS(SVG, tag);
    setAttributes(node, attributes);
    node.append(...children);
    return node;
}

export function setAttributes(node, attributes) {
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
}

/** An icon of the page's own set, to be seen only. */
export function icon(name) {
    return shape("svg", { class: "icon", "aria-hidden": "true" }, shape("use", { href: `#icon-${name}` }));
}

export function button(label, iconName, onclick) {
    return element("button", { type: "button", onclick }, icon(iconName), element("span", { textContent: label }));
}

/** Writes only what has changed, so that a selection in the text stays. */
export function setText(node, text) {
    if (node.textContent !== text) node.textContent = text;
}

/**
 * Makes the children of `container` those of `items`, in their order: existing ones are updated in place.
 *
 * `create(item)` makes an object with a `node` and an `update(item)`, which is kept under `key(item)`.
 */
export class KeyedChildren {
    #container;
    #key;
    #create;
    #children = new Map();

    constructor(container, key, create) {
        this.#container = container;
        this.#key = key;
        this.#create = create;
    }

    update(items) {
        const gone = new Map(this.#children);
        items.forEach((item, index) => {
            const key = this.#key(item);
            gone.delete(key);
            if (!this.#children.has(key)) this.#children.set(key, this.#create(item));
            const { node } = this.#children.get(key);
            if (this.#container.children[index] !== node)
                this.#container.insertBefore(node, this.#container.children[index]);
            this.#children.get(key).update(item);
        });
        for (const [key, child] of gone) {
            child.node.remove();
            this.#children.delete(key);
        }
    }
}
