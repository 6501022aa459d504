// What the page uses of htm-preact.js, for the check of types.
export function html(strings: TemplateStringsArray, ...values: any[]): any;
export function render(tree: any, parent: Element): void;
export function useState<T>(first: T | (() => T)): [T, (next: T | ((before: T) => T)) => void];
export function useEffect(work: () => void | (() => void), inputs?: any[]): void;
export function useLayoutEffect(work: () => void | (() => void), inputs?: any[]): void;
export function useMemo<T>(work: () => T, inputs: any[]): T;
export function useCallback<T>(work: T, inputs: any[]): T;
export function useRef<T>(first: T): { current: T };
