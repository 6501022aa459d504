// What the page uses of signals-core.js, for the check of types.
export interface Signal<T> { value: T; peek(): T }
export function signal<T>(first: T): Signal<T>;
export function computed<T>(work: () => T): { readonly value: T; peek(): T };
export function effect(work: () => void): () => void;
export function batch<T>(work: () => T): T;
