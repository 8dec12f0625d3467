// Values that outlive a reload. A browser may refuse to keep them; the page then works without.

class Store {
    #area;

    constructor(area) {
        this.#area = area;
    }

    load(name, fallback) {
        try {
            const text = this.#area().getItem(`mdi.${name}`);
            return text === null ? fallback : JSON.parse(text);
        } catch {
            return fallback;
        }
    }

    save(name, value) {
        try {
            this.#area().setItem(`mdi.${name}`, JSON.stringify(value));
        } catch {
            // Private windows and full stores: nothing to be done.
        }
    }
}

// As functions: where a browser blocks storage, naming it is what throws.
export const thisBrowser = new Store(() => localStorage);
export const thisTab = new Store(() => sessionStorage);
