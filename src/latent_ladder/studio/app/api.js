// Calls of the documented routes under /ladder; every refusal becomes an ApiError with words.

/** A refusal of the server, or a lost connection. */
export class ApiError extends Error {
  /**
   * @param {string} message
   * @param {string} hint
   * @param {number} status 0 where no answer came
   * @param {{field: string|null, message: string, hint: string|null}[]} problems
   */
  constructor(message, hint = '', status = 0, problems = []) {
    super(message);
    this.hint = hint;
    this.status = status;
    this.problems = problems;
  }
}

/**
 * @param {string} method
 * @param {string} path
 * @param {any} [body]
 * @param {{signal?: AbortSignal, headers?: Record<string, string>}} [options]
 * @returns {Promise<any>}
 */
async function call(method, path, body, options = {}) {
  let answer;
  try {
    answer = await fetch(`/ladder${path}`, {
      method,
      signal: options.signal,
      headers: body === undefined ? options.headers : { 'Content-Type': 'application/json', ...options.headers },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (/** @type {Error} */ (error).name === 'AbortError') throw error;
    throw new ApiError('The server does not answer.', 'Is it still running? Start it with: ladder studio');
  }
  return readAnswer(answer);
}

/** @param {Response} answer */
async function readAnswer(answer) {
  const text = await answer.text();
  let data = null;
  try {
    data = text ? JSON.parse(text) : null;
  } catch {
    throw new ApiError(`The server answered ${answer.status} with something that is not JSON.`, '', answer.status);
  }
  if (answer.ok) return data;
  const error = data?.error ?? {};
  if (typeof error === 'string') throw new ApiError(error, '', answer.status);
  throw new ApiError(error.message ?? `The server answered ${answer.status}.`, error.hint ?? '', answer.status, error.problems ?? []);
}

/** @param {Record<string, string|number|boolean|undefined|null>} query */
export function queryText(query) {
  const parts = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    if (value !== undefined && value !== null && value !== '' && value !== false) parts.set(name, String(value === true ? 1 : value));
  }
  const text = parts.toString();
  return text ? `?${text}` : '';
}

export const api = {
  /** @param {string} path @param {{signal?: AbortSignal}} [options] */
  get: (path, options) => call('GET', path, undefined, options),
  /** @param {string} path @param {any} [body] @param {{signal?: AbortSignal, headers?: Record<string, string>}} [options] */
  post: (path, body = {}, options) => call('POST', path, body, options),
  /** @param {string} path @param {any} body */
  put: (path, body) => call('PUT', path, body),
  /** @param {string} path */
  remove: (path) => call('DELETE', path),
  /**
   * Send a file; `progress` gets the sent share, 0 to 1.
   * @param {File} file
   * @param {(share: number) => void} progress
   */
  upload: (file, progress) => new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const form = new FormData();
    form.set('file', file);
    request.open('POST', '/ladder/uploads');
    request.upload.onprogress = (event) => progress(event.total ? event.loaded / event.total : 0);
    request.onerror = () => reject(new ApiError('The file did not arrive.', 'Is the server still running? Try again.'));
    request.onload = () => readAnswer(new Response(request.responseText, { status: request.status })).then(resolve, reject);
    request.send(form);
  }),
};
