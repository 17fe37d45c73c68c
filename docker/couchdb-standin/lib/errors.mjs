/**
 * What a request can end with other than success: status, `error` and `reason` exactly as CouchDB 3.4 words them.
 */
export class CouchError extends Error {
  constructor(status, error, reason) {
    super(reason);
    this.status = status;
    this.error = error;
    this.reason = reason;
  }
}

export const badRequest = (reason) => new CouchError(400, "bad_request", reason);
export const invalidJson = () => badRequest("invalid UTF-8 JSON");
export const queryParseError = (reason) => new CouchError(400, "query_parse_error", reason);
export const docValidation = (reason) => new CouchError(400, "doc_validation", reason);
export const illegalDocId = (reason) => new CouchError(400, "illegal_docid", reason);
export const unauthorized = (reason) => new CouchError(401, "unauthorized", reason);
export const notFound = (reason = "missing") => new CouchError(404, "not_found", reason);
export const noDatabase = () => notFound("Database does not exist.");
export const noAttachment = () => notFound("Document is missing attachment");
export const methodNotAllowed = (allowed) => new CouchError(405, "method_not_allowed", `Only ${allowed} allowed`);
export const conflict = () => new CouchError(409, "conflict", "Document update conflict.");
/** CouchDB's answer to an attachment for a revision it never had: the status of a conflict, the name of a missing one. */
export const missingRev = () => new CouchError(409, "not_found", "missing_rev");
export const missingStub = (id, name) =>
  new CouchError(412, "missing_stub", `Invalid attachment stub in ${id} for ${name}`);
export const documentTooLarge = (id) => new CouchError(413, "document_too_large", id);
export const badContentType = (reason = "Content-Type must be application/json") =>
  new CouchError(415, "bad_content_type", reason);
/** What CouchDB says where its own code does not expect the input. */
export const functionClause = () => new CouchError(500, "unknown_error", "function_clause");
